"""Map every public name of versions before the first release to its present name.

Old names are not accepted. Where a config, an option or a request uses one, the error names the
new one, from these tables. A value may name two fields, as "a.b and a.c"; "" says that there is no
field of that kind any more.
"""

from __future__ import annotations

FIELDS: dict[str, str] = {
    # tables
    "stream": "data",
    "loader": "data",
    "eyes": "diagnostics",
    "watch": "stability",
    "adapt": "trainable",
    "preference": "dpo",
    # data
    "stream.row_length": "data.seq_len",
    "stream.num_rows": "data.global_batch_size and data.micro_batch_size",
    "stream.window": "data.pack_window",
    "stream.patience": "data.max_deferred",
    "stream.share_of": "data.mixture_unit",
    "stream.image_first": "data.image_first_prob",
    "stream.drop_condition": "data.cond_dropout_prob",
    "stream.seed": "data.seed",
    "loader.workers": "data.num_workers",
    "accumulate": "data.global_batch_size and data.micro_batch_size",
    # optimizer, schedule, compute, parallel
    "optimizer.kind": "optimizer.name",
    "optimizer.peak_rate": "optimizer.lr",
    "optimizer.muon_rate": "optimizer.muon_lr",
    "optimizer.epsilon": "optimizer.eps",
    "optimizer.max_gradient_norm": "optimizer.max_grad_norm",
    "schedule.decay": "schedule.decay_type",
    "schedule.final_share": "schedule.min_lr_factor",
    "compute.recompute": "compute.activation_checkpointing",
    "parallel.replicas": "parallel.data_parallel_replicate",
    "parallel.tensor": "parallel.tensor_parallel",
    # checkpoints, stages, diagnostics
    "save_every": "checkpoint.interval",
    "keep_last": "checkpoint.keep_latest",
    "keep_every": "checkpoint.keep_every",
    "save_async": "checkpoint.async_save",
    "z_loss": "z_loss_weight",
    "model.max_tokens": "model.max_seq_len",
    "stage_two.kept": "stage_two.stage_one_fraction",
    "stage_two.added": "stage_two.added_weights",
    "stage_two_share": "stage_two_fraction",
    "eyes.every": "diagnostics.interval",
    "eyes.places": "diagnostics.num_tokens",
    # stability
    "watch.spike_deviations": "stability.spike_sigma",
    "watch.spike_share": "stability.spike_min_relative",
    "watch.warn_steps": "stability.warn_horizon_steps",
    "watch.most_output": "stability.max_output_rms",
    "watch.most_z": "stability.max_log_z",
    "watch.most_attention": "stability.max_attention_logit",
    "watch.most_skipped": "stability.max_skipped_steps",
    "watch.most_roll_backs": "stability.max_rollbacks",
    "watch.retry_steps": "stability.rollback_memory_steps",
    "watch.rate_factor": "stability.rollback_lr_factor",
    # fine-tuning and preference tuning
    "adapt.matrices": "trainable.blocks",
    "adapt.tables": "trainable.embeddings",
    "adapt.rows": "trainable.vocab_rows",
    "adapt.rank": "trainable.lora_rank",
    "adapt.alpha": "trainable.lora_alpha",
    "category_shares": "category_weights",
    "preference.doubt": "dpo.label_smoothing",
    "preference.answer_weight": "dpo.sft_weight",
    # filters of documents (`--filter FILE`)
    "smallest_side": "min_image_side",
    "longest_ratio": "max_aspect_ratio",
    "least_contrast": "min_contrast",
    "fewest_letters": "min_chars",
    "most_letters": "max_chars",
    "most_repetition": "max_dup_5gram_frac",
    "licences": "licenses",
    "scores.call": "scores.function",
    "scores.of": "scores.applies_to",
    "scores.least": "scores.min",
    "scores.most": "scores.max",
    # image tokenizer: codebook
    "training.codebook.lookup": "training.codebook.quantizer",
    "training.codebook.legacy_beta": "training.codebook.legacy",
    "training.codebook.revive_after_steps": "training.codebook.dead_code_restart_steps",
    # sampling
    "image.text_guidance": "image.guidance_scale",
    "image.image_guidance": "image.image_guidance_scale",
    "image.speculate": "image.num_speculative_tokens",
}
"""Dotted fields of TOML configs, which are `--dotted.options` as well: old -> new."""

OPTIONS: dict[str, str] = {
    "build-shards --piece": "--shard-documents",
    "build-shards --clean": "--filter",
    "build-shards --skip-bad": "--skip-invalid",
    "plan --vocabulary": "--vocab-size",
    "--samples": "--num-samples",
    "corpus --least": "--min-score",
    "corpus --most": "--max-documents",
    "corpus --measure": "--scorer",
    "corpus --side": "--target-side",
    "--guidance": "--guidance-scale",
    "--keep-codes": "--keep-image-tokens",
    "--weights": "--quantization",
    "inspect --page": "--html",
    "serve --name": "--served-model-name",
    "serve --keys": "--api-keys-file",
    "serve --new-key": "--create-api-key",
    "serve --max-queue": "--max-concurrent-requests",
    "serve --allow-host": "--allowed-media-domains",
    "serve --filter": "--content-filter",
    "serve --replicas": "--num-replicas",
    "serve --tensor": "--tensor-parallel-size",
    "serve --fleet": "--vllm-url",
    "evaluate --show": "--log-samples",
    "evaluate --shots": "--num-fewshot",
    "evaluate --votes": "--majority-votes",
    "evaluate --features": "--feature-network",
    "evaluate --turns": "--chat-template",
    "evaluate --prompts": "--max-prompts",
    "evaluate --labels": "--safety-classifiers",
    "compare --kinds": "--question-sets",
    "compare --draw-captions": "--caption-to-image",
    "compare --key": "--access-token",
}
"""Options that are no config fields: old -> new; "COMMAND --old" where only one command had it."""

REQUEST_FIELDS: dict[str, str] = {
    "guidance": "guidance_scale",
    "image_guidance": "image_guidance_scale",
    "prompt_in_picture": "embed_prompt_metadata",
    "include_tokens": "return_token_ids",
}
"""Fields of HTTP request bodies: old -> new."""

EVAL_TASKS: dict[str, str] = {"drawing": "color_accuracy"}
"""Tasks of `calumma evaluate`: old -> new."""

SERVE_LIMITS: dict[str, str] = {
    "max_queue": "max_concurrent_requests",
    "body_seconds": "request_timeout_seconds",
    "picture_seconds": "image_timeout_seconds",
    "answer_seconds": "generation_timeout_seconds",
    "stall_seconds": "write_timeout_seconds",
    "grace_seconds": "shutdown_grace_seconds",
    "picture_processes": "image_processes",
    "picture_memory_bytes": "image_memory_bytes",
}
"""Names in `calumma serve --limit NAME=N`: old -> new."""


def rename_message(kind: str, old: str, new: str) -> str:
    """Return the error message for an old name.

    >>> rename_message("field", "stream.row_length", "data.seq_len")
    'unknown field stream.row_length; it is now data.seq_len.'
    >>> rename_message("option", "--old", "")
    'unknown option --old; it was removed.'
    """
    return f"unknown {kind} {old}; it {f'is now {new}' if new else 'was removed'}."
