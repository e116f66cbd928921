"""Map every public name of versions before the first release to its present name.

Old names are not accepted. Where a config, an option or a request uses one, the error names the
new one, from these tables. A value may name two fields, as "a.b and a.c", or different fields of
different configs, as "a.b or a.c".
"""

_IMAGE_TOKENIZER = {
    "peak_rate": "lr",
    "final_rate_share": "min_lr_factor",
    "averaging_decay": "ema_decay",
    "continuous_steps": "quantize_start_step",
    "max_gradient_norm": "max_grad_norm",
    "codebook.lookup": "codebook.quantizer",
    "codebook.legacy_beta": "codebook.legacy",
    "codebook.revive_after_steps": "codebook.dead_code_restart_steps",
    "losses.adversarial_weight": "losses.disc_weight",
    "losses.adversarial_start_step": "losses.disc_start_step",
    "losses.discriminator_channels": "losses.disc_channels",
    "losses.discriminator_layers": "losses.disc_num_layers",
    "augment.smallest_crop": "augment.min_crop_scale",
    "augment.mirror": "augment.horizontal_flip",
    "regions.side": "regions.crop_size",
    "regions.face_repeats": "regions.face_oversampling",
}
"""Fields of the table `training`, in the config of the demo `image_tokenizer`."""

FIELDS: dict[str, str] = {
    # tables
    "stream": "data",
    "loader": "data",
    "eyes": "diagnostics",
    "watch": "stability",
    "adapt": "trainable",
    "preference": "dpo",
    "drawing": "image_sampling",
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
    "save_every": "checkpoint.interval or checkpoint_interval",
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
    "pairs_per_step": "batch_size",
    "pairs_at_once": "micro_batch_size",
    "row_length": "seq_len",
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
    # image tokenizer
    **{
        f"{table}.{old}": f"{table}.{new}"
        for table in ("training", "image_tokenizer")
        for old, new in _IMAGE_TOKENIZER.items()
    },
    # demo, logs, sampling
    "num_measured": "max_eval_documents",
    "log.report_seconds": "log.report_interval_seconds",
    "drawing.text_guidance": "image_sampling.guidance_scale",
    "drawing.image_guidance": "image_sampling.image_guidance_scale",
    "drawing.speculate": "image_sampling.num_speculative_tokens",
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
    "serve --fleet": "--url",
    "serve --vllm-url": "--url",
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


def new_fields(path: str) -> list[list[str]]:
    """Return the alternatives that a dotted field may have been renamed to, best first.

    A field of a renamed table has the same name in the new table unless it is listed itself.

    >>> new_fields("loader.workers"), new_fields("watch.window"), new_fields("data.seed")
    ([['data.num_workers']], [['stability.window']], [])
    """
    if path in FIELDS:
        return [alternative.split(" and ") for alternative in FIELDS[path].split(" or ")]
    table, _, rest = path.partition(".")
    return [[f"{FIELDS[table]}.{rest}"]] if rest and table in FIELDS else []


def rename_message(kind: str, old: str, new: str) -> str:
    """Return the error message for an old name.

    >>> rename_message("field", "stream.row_length", "data.seq_len")
    'unknown field stream.row_length; it is now data.seq_len.'
    """
    return f"unknown {kind} {old}; it is now {new}."
