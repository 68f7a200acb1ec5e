"""Run by the project's Python, with transformers and PEFT alone: the log-likelihoods of continuations and greedy
answers, in float32. Reads a JSON question on stdin, writes a JSON answer."""

import json
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def loglikelihood(model: torch.nn.Module, tokenizer: object, context: str, continuation: str) -> tuple[float, bool]:
    """Of the continuation's tokens, and whether each is the likeliest: the harness's two figures."""
    ids = tokenizer(context + continuation, add_special_tokens=False, return_tensors="pt").input_ids
    start = len(tokenizer(context, add_special_tokens=False).input_ids)
    logprobs = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
    wanted = ids[0, start:]
    total = logprobs.gather(1, wanted[:, None]).sum().item()
    return total, bool((logprobs.argmax(-1) == wanted).all())


@torch.no_grad()
def greedy(model: torch.nn.Module, tokenizer: object, question: str, max_tokens: int) -> str:
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**prompt, max_new_tokens=max_tokens, do_sample=False)
    return tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def main() -> None:
    asked = json.load(sys.stdin)
    tokenizer = AutoTokenizer.from_pretrained(asked["base"])
    model = AutoModelForCausalLM.from_pretrained(asked["base"], dtype=torch.float32).eval()
    answer = {"greedy": [greedy(model, tokenizer, text, asked["max_tokens"]) for text in asked["questions"]]}
    answer["base"] = [loglikelihood(model, tokenizer, *pair) for pair in asked["pairs"]]
    model = PeftModel.from_pretrained(model, asked["adapter"]).eval()
    answer["adapter"] = [loglikelihood(model, tokenizer, *pair) for pair in asked["pairs"]]
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
