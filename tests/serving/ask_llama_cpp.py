"""Next tokens by llama.cpp: from {"model": file, "prompts": [[id, ...], ...], "shown": n} on stdin to their logits."""

import json
import sys

import xllamacpp

asked = json.load(sys.stdin)
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel = asked["model"], 256, 1
settings.cpuparams.n_threads, settings.warmup = 1, False
server = xllamacpp.Server(settings)
answers = []
for prompt in asked["prompts"]:
    given = {"prompt": prompt, "n_predict": 1, "n_probs": asked["shown"], "temperature": 0.0}
    answer = server.handle_completions(given)
    answer = answer if isinstance(answer, dict) else json.loads(answer)
    shown = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    answers.append({one["id"]: one["logprob"] for one in shown})
print("ANSWER", json.dumps(answers))
