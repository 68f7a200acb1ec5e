"""The words of the Monitor tab."""

from adapters.ui.words import Both, Words

LABELS: dict[str, Both] = {
    "title": ("监控", "Monitor"),
    "window": ("时间范围", "Time range"),
    "60": ("1 分钟", "1 minute"),
    "300": ("5 分钟", "5 minutes"),
    "900": ("15 分钟", "15 minutes"),
}

LINES: dict[str, Both] = {
    "no_admin": (
        "监控只对管理员开放。请用管理员密钥登录，或请管理员查看。",
        "The monitor is for admins. Log in with an admin key, or ask an admin.",
    ),
    "throughput": ("吞吐", "Throughput"),
    "per_s": ("tokens/s", "tokens/s"),
    "generated": ("生成", "generated"),
    "prompt": ("输入", "prompt"),
    "first_token": ("首字延迟", "Time to first token"),
    "between": ("字间延迟", "Between tokens"),
    "requests": ("请求", "Requests"),
    "running": ("运行中", "running"),
    "waiting": ("排队中", "waiting"),
    "kv": ("KV 块", "KV blocks"),
    "used": ("已用", "used"),
    "cache": ("前缀缓存", "Prefix cache"),
    "found": ("的输入 tokens 命中", "of prompt tokens found"),
    "slots": ("适配器槽位", "Adapter slots"),
    "taken": ("已占", "taken"),
    "memory": ("内存", "Memory"),
    "process": ("进程", "process"),
    "gpu": ("显存", "GPU"),
    "adapters_host": ("适配器", "adapters"),
    "adapters_device": ("设备上的适配器", "adapters on the device"),
    "of": ("{used} / {total}", "{used} of {total}"),
    "ago_min": ("{n} 分钟前", "{n} min ago"),
    "ago_s": ("{n} 秒前", "{n} s ago"),
    "ago_h": ("{n} 小时前", "{n} h ago"),
    "now": ("现在", "now"),
    "traffic": ("各模型流量", "Traffic by model"),
    "no_traffic": (
        "这段时间没有请求。去“对话”或“对比”问一句，这里马上有数。",
        "Nobody has asked anything in this time. Say something in Chat or Compare, and it shows here.",
    ),
    "adapter": ("模型", "Model"),
    "share": ("占比", "Share"),
    "errors": ("最近的错误", "Last errors"),
    "no_errors": ("启动以来没有出错的请求。", "No request has failed since the start."),
    "when": ("时间", "When"),
    "status": ("状态", "Status"),
    "code": ("代码", "Code"),
    "endpoint": ("接口", "Endpoint"),
    "key": ("密钥", "Key"),
    "request_id": ("请求 ID", "Request id"),
    "since_start": ("启动以来", "Since the start"),
    "totals": (
        "{answers} 次回答 · {generated} tokens 生成 · {prompt} tokens 输入 · {refused} 次拒绝（429）· {errors} 次出错"
        " · {preemptions} 次抢占 · {failed} 个失败步",
        "{answers} answers · {generated} tokens generated · {prompt} prompt tokens · {refused} refused (429) · "
        "{errors} failed · {preemptions} preempted · {failed} failed steps",
    ),
    "chart": ("{title}，最近 {minutes} 分钟：{values}", "{title}, last {minutes} min: {values}"),
    "other": ("其余", "others"),
    "base": ("底座", "base"),
}

MONITOR = Words("monitor", LABELS, LINES)
