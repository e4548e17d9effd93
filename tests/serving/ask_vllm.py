"""Greedy tokens by vLLM: from {"model": folder, "prompts": [[id, ...], ...], "tokens": n} on stdin to lists of ids."""

import json
import os
import sys

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}

if __name__ == "__main__":
    from vllm import LLM, SamplingParams

    asked = json.load(sys.stdin)
    options = {"enforce_eager": True, "max_model_len": 64, "dtype": "bfloat16", "max_num_seqs": 1}
    engine = LLM(asked["model"], skip_tokenizer_init=True, **options)
    greedy = SamplingParams(max_tokens=asked["tokens"], temperature=0, detokenize=False, ignore_eos=True)
    outputs = engine.generate([{"prompt_token_ids": prompt} for prompt in asked["prompts"]], greedy)
    print("ANSWER", json.dumps([list(output.outputs[0].token_ids) for output in outputs]))
