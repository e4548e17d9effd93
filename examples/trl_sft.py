"""TRL's SFTTrainer: fine-tune on film-review sentences, calibrate, look at the gap, save, export, merge.

python examples/trl_sft.py --output runs/sft
"""

from __future__ import annotations

import common
import torch

from aurora_lora import calibrate, export_lora, merge_gap

with common.needs("chat"):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer


def main() -> None:
    args = common.options(__doc__).parse_args()
    tokenizer, base = common.load_model(args.model)
    texts = common.sentences(args.model, args.steps * args.batch_size)
    settings = SFTConfig(
        output_dir=str(args.output / "checkpoints"),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        max_length=64,
        bf16=torch.cuda.is_available(),
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        seed=0,
    )
    trainer = SFTTrainer(
        model=base,
        args=settings,
        train_dataset=Dataset.from_dict({"text": texts}),
        processing_class=tokenizer,
        peft_config=common.aurora_config(args),
    )
    trainer.train()

    model = trainer.model
    batches = common.token_batches(tokenizer, texts, args.batch_size)
    report = calibrate(model, batches)
    print(f"calibrated {len(report.layers)} layers, explained share {min(e.explained for e in report.layers):.4f}")
    for form in merge_gap(model, batches[:2]).end_to_end:
        print(f"{form.form}: KL from trained {form.kl:.5f}, nll {form.metric['nll']:.4f}")
    trainer.save_model(str(args.output / "adapter"))
    export_lora(model, args.output / "lora")
    model.merge_and_unload().save_pretrained(args.output / "merged")


if __name__ == "__main__":
    main()
