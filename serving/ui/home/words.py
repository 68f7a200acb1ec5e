"""The words of the first page, in Chinese and English."""

from adapters.ui.words import Both, Words
from serving.ui.home.hero import hero

TITLE: Both = ("首页", "Home")

HERO: dict[str, Both] = {
    "what": ("一个模型，瞬间换脸", "One model that changes its face"),
    "how": (
        "变脸是川剧绝活：演员一挥手，就换一张脸。这里留在台上的是一个聊天底座，它的“脸”是小小的 LoRA "
        "适配器——换上孙悟空，它就是孙悟空；换下来，还是底座自己。不用重启，几张脸还能同时作答。",
        "In Sichuan opera a performer changes masks with a wave of the hand. Here one chat model, the base, stays on "
        "stage, and its faces are small LoRA adapters: put on Sun Wukong and it talks like the Monkey King, take the "
        "face off and it is the base again. Nothing restarts, and several faces can answer at once.",
    ),
    "talk": ("聊一聊", "Talk"),
    "talk_what": ("挑一张脸，说句话", "Pick a face and say something"),
    "compare": ("比一比", "Compare"),
    "compare_what": ("同一个问题，底座与新脸同时作答", "One question; the base and a face answer side by side"),
    "train": ("练一张", "Train your own"),
    "train_what": ("拖进一个文件，看着它学会", "Drop in a file and watch it learn"),
    "picture": ("同一位演员，几张面孔轮流换上", "One performer, several faces put on in turn"),
}

LINES: dict[str, Both] = {
    "faces": ("现成的脸", "Faces that are here already"),
    "no_faces": (
        "这个底座还没有脸。拖进一个文件，就能练出第一张。",
        "This base has no faces yet. Drop in a file to train the first.",
    ),
    "train_first": ("练一张", "Train one"),
    "plain": ("没有自我介绍的适配器", "An adapter that does not introduce itself"),
    "talk_to": ("聊聊", "Talk"),
    "with_base": ("与底座对比", "Compare with base"),
    "more": ("还有 {n} 张", "{n} more"),
    "api": ("给程序用：OpenAI 兼容接口", "For programs: an OpenAI-compatible API"),
    "api_how": (
        "把任何 OpenAI 客户端的地址改成 `{url}/v1`，模型名就是脸的名字。",
        "Point any OpenAI client at `{url}/v1`; the model's name is the face's.",
    ),
    "question": ("你是谁？", "Who are you?"),
}

# One label with all of it: Gradio translates a single label in a piece of HTML.
_ZH, _EN = (hero({key: both[at] for key, both in HERO.items()}) for at in (0, 1))

HOME = Words("home", {"title": TITLE, "hero": (_ZH, _EN)}, LINES)
