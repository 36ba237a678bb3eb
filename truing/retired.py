"""Setting names from TRL, transformers and habit that mean nothing here, and what to do instead.

A name that is a setting of the command at hand never gets here.
"""

_ADVICE: list[tuple[str, str]] = [
    ("lr", "it is called learning_rate"),
    ("epochs num_epochs", "it is called num_train_epochs"),
    ("batch_size train_batch_size", "it is called per_device_train_batch_size"),
    ("eval_batch_size", "it is called per_device_eval_batch_size"),
    ("grad_accum accumulation_steps", "it is called gradient_accumulation_steps"),
    ("model model_name", "it is called model_name_or_path"),
    ("ref_model reference_model", "it is called ref_model_name_or_path"),
    ("dataset data train_file", "it is called dataset_name"),
    ("max_new_tokens response_length", "it is called max_completion_length"),
    ("torch_dtype", "it is called dtype"),
    ("revision", "it is called model_revision"),
    ("chat_template_path tokenizer_name_or_path", "chat_template takes the path of a Jinja file"),
    ("max_seq_length max_prompt_length max_target_length", "max_length bounds the whole row"),
    ("no_cuda use_mps_device", "write use_cpu: true to stay on the CPU; else a GPU is found"),
    (
        "fp16 bf16_full_eval fp16_full_eval half_precision_backend fp16_opt_level",
        "write dtype: bfloat16, or to train over weights in float32 bf16: true; float16 is not "
        "offered",
    ),
    ("tf32", "float32_matmul_precision: high allows it, highest forbids it"),
    (
        "load_in_4bit load_in_8bit use_bnb_nested_quant bnb_4bit_quant_type",
        "quantised weights are not offered; dtype: bfloat16 with use_peft: true saves most memory",
    ),
    (
        "use_liger_kernel liger_kernel_config use_liger_loss",
        "logits are never held for a whole batch anyway; leave the key out",
    ),
    (
        "torch_compile torch_compile_backend torch_compile_mode",
        "models run uncompiled; leave it out",
    ),
    (
        "activation_offloading activation_checkpointing activation_checkpointing_kwargs "
        "gradient_checkpointing_kwargs torch_empty_cache_steps auto_find_batch_size",
        "gradient_checkpointing: true saves memory, and a smaller per_device_train_batch_size "
        "with more gradient_accumulation_steps gives the same loss",
    ),
    (
        "padding_free packing packing_strategy eval_packing pad_to_multiple_of group_by_length "
        "train_sampling_strategy length_column_name",
        "rows already stand behind each other without padding, each blind to the others, wherever "
        "the model can read them so; leave the key out",
    ),
    (
        "dataset_num_proc dataset_batch_size dataset_kwargs dataloader_num_workers "
        "dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
        "dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context "
        "remove_unused_columns label_names dataset_streaming streaming",
        "rows are encoded once, before training, and a smaller last batch counts in full; "
        "leave the key out",
    ),
    (
        "dataset_text_field assistant_only_loss formatting_func",
        "rows hold prompt and completion, or messages; completion_only_loss says what is learnt",
    ),
    ("dataset_config", "write the subset behind the name: dataset_name: owner/name:subset"),
    ("datasets test_split_size", "name one file in dataset_name and another in eval_dataset_name"),
    (
        "optim optim_args optim_target_modules adafactor",
        "the optimiser is AdamW; adam_beta1, adam_beta2, adam_epsilon and weight_decay set it",
    ),
    ("lr_scheduler_kwargs", "lr_scheduler_type and warmup_steps say it all; leave the key out"),
    (
        "neftune_noise_alpha label_smoothing_factor router_aux_loss_coef "
        "average_tokens_across_devices",
        "the loss is the plain one, averaged over all tokens or pairs of a step on all devices",
    ),
    ("data_seed full_determinism", "seed names every random draw, the order of the rows too"),
    (
        "eval_strategy evaluation_strategy eval_on_start eval_delay do_train do_eval do_predict "
        "eval_accumulation_steps eval_do_concat_batches eval_use_gather_object batch_eval_metrics "
        "include_for_metrics prediction_loss_only",
        "eval_steps says how often, and rows to evaluate on are used whenever there are any",
    ),
    (
        "logging_strategy logging_first_step logging_dir log_level log_level_replica "
        "logging_nan_inf_filter log_on_each_node disable_tqdm debug skip_memory_metrics "
        "include_num_input_tokens_seen",
        "logging_steps says how often, and metrics.jsonl in output_dir gets every line",
    ),
    (
        "log_completions generate_during_eval wandb_log_unique_prompts",
        "log_completions_steps: 100 samples the same few prompts every 100 steps",
    ),
    (
        "project trackio_space_id trackio_bucket_id trackio_static_space_id wandb_project",
        "report_to names the trackers; their own environment variables set the rest",
    ),
    (
        "save_strategy save_only_model save_safetensors save_on_each_node enable_jit_checkpoint "
        "restore_callback_states_from_checkpoint",
        "save_steps says how often; a checkpoint holds all that a run needs to go on, as "
        "safetensors, and the model itself is written at the end",
    ),
    (
        "load_best_model_at_end",
        "metric_for_best_model does so by itself: the model that is written is that of its best "
        "step",
    ),
    (
        "resume_from_checkpoint ignore_data_skip overwrite_output_dir",
        "the same command with the same output_dir goes on with a run that was stopped, from its "
        "last checkpoint; a finished run is never overwritten: give a new output_dir, and its "
        "folder as model_name_or_path to go on from its model",
    ),
    (
        "push_to_hub hub_model_id hub_token hub_strategy hub_private_repo hub_revision "
        "hub_always_push",
        "nothing is uploaded; when the run is done, `hf upload` takes its folder",
    ),
    (
        "fsdp fsdp_config deepspeed parallelism_config",
        "devices share rows here, each with a whole model (DDP): models are not sharded yet; a "
        "large one fits with use_peft and gradient_checkpointing",
    ),
    (
        "accelerator_config ddp_backend ddp_timeout ddp_find_unused_parameters ddp_bucket_cap_mb "
        "ddp_broadcast_buffers ddp_static_graph local_rank",
        "how processes share the work belongs to accelerate: `accelerate config`, then "
        "`accelerate launch -m truing ...`",
    ),
    (
        "model_init_kwargs ref_model_init_kwargs device_map use_cache",
        "dtype, attn_implementation, model_revision and trust_remote_code say how a model is read",
    ),
    (
        "use_rslora use_dora lora_task_type lora_modules_to_save lora_target_parameters "
        "lora_bias model_adapter_name ref_adapter_name",
        "adapters are plain LoRA: lora_r, lora_alpha, lora_dropout, lora_target_modules",
    ),
    (
        "precompute_ref_log_probs precompute_ref_batch_size reference_free force_use_ref_model",
        "the reference's log-probs are always computed once, before training, and never for a "
        "loss_type without a reference; leave the key out. ref_log_probs_cache keeps them for "
        "other runs",
    ),
    (
        "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps",
        "the reference stays as it is; for another one, start a run with ref_model_name_or_path",
    ),
    (
        "loss_weights ld_alpha f_divergence_type f_alpha_divergence_coef use_weighting use_wpo "
        "discopop_tau",
        "of the preference losses those that loss_type names are offered, one at a time; for sft "
        "beside one of them, give rpo_alpha its weight",
    ),
    ("nll_loss_coef pref_ftx sft_loss_weight", "it is called rpo_alpha"),
    ("completion_only_loss", "only sft has it"),
    ("loss_type", "only dpo, reward and grpo have it"),
    ("beta", "sft and reward hold to no reference"),
    ("label_smoothing rpo_alpha simpo_gamma cpo_alpha", "only dpo has it"),
    ("desirable_weight undesirable_weight", "only kto has it"),
    ("ref_model_name_or_path", "only the stages that learn beside a reference have it"),
    ("ref_log_probs_cache", "only dpo and kto have it"),
    ("center_rewards_coefficient standardize_ratings", "only reward has it"),
    ("ties", "only reward and dpo have it"),
    ("num_generations temperature top_p", "only the commands that sample have it"),
]

# Of the online stages: names that mean the same as one of ours, and names that mean nothing.
ONLINE_NAMES: dict[str, str] = {
    "sft_model_path": "model_name_or_path",
    "reward_model_path": "reward",
    "reward_model": "reward",
    "reward_funcs": "reward",
    "max_completion_length": "response_length",
    "max_new_tokens": "response_length",
    "init_kl_coef": "kl_coef",
    "beta": "kl_coef",
    "target": "kl_target",
    "horizon": "kl_horizon",
    "ppo_epochs": "num_ppo_epochs",
    "num_iterations": "num_ppo_epochs",
    "epsilon": "cliprange",
    "epsilon_high": "cliprange_high",
    "rloo_k": "num_generations",
    "normalize_advantages": "whiten_advantages",
}

# Of grpo alone, where TRL has its KL in the loss.
GROUP_NAMES: dict[str, str] = {"beta": "kl_loss_coef"}

# Which of two such names to keep.
ONLINE_PREFERRED: dict[str, str] = {
    "sft_model_path": "What TRL trains is its sft_model_path: keep that one, as "
    "model_name_or_path; a tokenizer comes with it",
}

# Names with values that say what is done anyway: a response ends at its first end token.
ONLINE_SETTLED: dict[str, tuple[str, ...]] = {"stop_token": ("eos", "none")}

_ONLINE_ADVICE: list[tuple[str, str]] = [
    (
        "top_p top_k min_p typical_p repetition_penalty presence_penalty frequency_penalty "
        "no_repeat_ngram_size generation_kwargs",
        "what is learnt from must be drawn from the policy itself, or its log-probs are those of "
        "another; leave it out, and lower temperature for likelier tokens",
    ),
    (
        "stop_token stop_token_id",
        "a response ends at its first end token, so the values eos and none are taken; "
        "eos_token names another one",
    ),
    ("exp_name", "it is called run_name"),
    (
        "batch_size local_batch_size micro_batch_size",
        "per_device_train_batch_size times gradient_accumulation_steps, on each device, is a "
        "rollout",
    ),
    (
        "mini_batch_size local_mini_batch_size",
        "num_mini_batches says into how many parts a rollout is cut",
    ),
    ("num_total_batches", "max_steps is the number of rollouts, total_episodes of responses"),
    (
        "world_size ds3_gather_for_generation",
        "how processes share the work belongs to accelerate: `accelerate launch -m truing ...`",
    ),
    (
        "model_adapter_name ref_adapter_name",
        "with use_peft: true the reference is the model with its adapters switched off",
    ),
    ("adap_kl_ctrl", "kl_target alone switches the adaptive coefficient on"),
    ("kl_penalty", "it is called kl_estimator (k1, k2 or k3); kl_coef is its weight"),
    (
        "fp16 bf16",
        "write dtype: bfloat16 together with use_peft: true, else leave it at float32, for "
        "weights in bfloat16 lose the small updates of this stage. bf16 over weights in float32 "
        "would part the trainer's log-probs from the sampler's; float16 is not offered",
    ),
    ("early_stopping", "target_kl alone switches it on"),
    (
        "reward_shaping_enable_length reward_shaping_length_coef "
        "reward_shaping_enable_repetition reward_shaping_repetition_coef "
        "reward_shaping_repetition_ngram reward_shaping_enable_eos reward_shaping_eos_bonus "
        "reward_shaping_eos_missing_penalty reward_shaping_eos_out_of_range_penalty "
        "reward_shaping_eos_min_len reward_shaping_eos_max_len",
        "missing_eos_penalty covers the end; anything else is a function of yours among the "
        "rewards: reward: [runs/reward, my_rewards:shape]",
    ),
    ("value_model_path critic_model_path", "it is called value_model"),
    (
        "value_model share_backbone vf_coef cliprange_value gamma lam whiten_rewards",
        "only ppo has a critic",
    ),
    ("num_generations", "only rloo, reinforce and grpo sample several responses to a prompt"),
    ("advantage_estimator", "only reinforce has it; the other commands are estimators themselves"),
    (
        "scale_rewards importance_sampling_level mask_truncated_completions dynamic_sampling "
        "max_num_gen_batches",
        "only grpo has it",
    ),
    (
        "use_vllm vllm_mode vllm_model_impl vllm_server_base_url vllm_server_host "
        "vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization "
        "vllm_tensor_parallel_size vllm_max_model_length vllm_enable_sleep_mode "
        "vllm_importance_sampling_correction vllm_importance_sampling_mode "
        "vllm_importance_sampling_cap vllm_guided_decoding_regex vllm_structured_outputs_regex "
        "use_transformers_paged cache_implementation",
        "the model that learns draws the responses itself, so no correction is needed; "
        "local_rollout_forward_batch_size says how many side by side",
    ),
    (
        "generation_batch_size steps_per_generation num_generations_eval",
        "per_device_train_batch_size times gradient_accumulation_steps, on each device, is a "
        "rollout, num_mini_batches cuts it, and held-out prompts are answered once",
    ),
    ("delta", "there is no second clip of the ratio; cliprange_high is the one above 1"),
    ("use_kl_loss", "kl_loss_coef alone switches it on"),
]

_GROUP_ADVICE: list[tuple[str, str]] = [
    (
        "top_entropy_quantile sapo_temperature_pos sapo_temperature_neg "
        "off_policy_mask_threshold use_bias_correction_kl multi_objective_aggregation",
        "all tokens are learnt from, by the loss that loss_type or advantage_estimator names; "
        "leave the key out",
    ),
    (
        "tools max_tool_calling_iterations rollout_func",
        "a response is one turn of text; leave it out",
    ),
    (
        "cast_lm_head_to_fp32 chat_template_kwargs log_unique_prompts log_completions_hub_repo",
        "log-probs are computed in float32 anyway, chat_template is all of the template, and "
        "samples.jsonl in output_dir keeps what was looked at; leave the key out",
    ),
]


def _by_name(rows: list[tuple[str, str]]) -> dict[str, str]:
    return {name: advice for names, advice in rows for name in names.split()}


RETIRED: dict[str, str] = _by_name(_ADVICE)
ONLINE_RETIRED: dict[str, str] = _by_name(_ONLINE_ADVICE)
GROUP_RETIRED: dict[str, str] = _by_name(_GROUP_ADVICE)
