"""Greedy tokens by llama.cpp: from {"model": file, "adapter": file or null, "prompts": [[id, ...], ...], "tokens": n,
"shown": n} on stdin to, for each token of each prompt, the log-probabilities of the likeliest, this one first."""

import json
import sys

import xllamacpp

asked = json.load(sys.stdin)
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel = asked["model"], 256, 1
settings.cpuparams.n_threads, settings.warmup = 1, False
if asked["adapter"]:
    adapter = xllamacpp.CommonAdapterLoraInfo()
    adapter.path, adapter.scale = asked["adapter"], 1.0
    settings.lora_adapters = [adapter]
server = xllamacpp.Server(settings)
answers = []
for prompt in asked["prompts"]:
    given = {"prompt": prompt, "n_predict": asked["tokens"], "n_probs": asked["shown"]}
    given |= {"temperature": 0.0, "ignore_eos": True}
    answer = server.handle_completions(given)
    answer = answer if isinstance(answer, dict) else json.loads(answer)
    shown = [token["top_logprobs"] for token in answer["choices"][0]["logprobs"]["content"]]
    answers.append([{one["id"]: one["logprob"] for one in token} for token in shown])
print("ANSWER", json.dumps(answers))
