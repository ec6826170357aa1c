"""Names of other programs for the settings, flags and values of this project.

For example, other programs write `lr`, `--batch-size` and `num_clients`. This project does not
accept such a name, but its error message suggests the project's own name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# The names of other programs for each setting. A key is the dotted path of a setting.
SETTINGS: Mapping[str, str] = {
    "training.learning_rate": "lr learn_rate learningrate client_lr local_lr base_lr max_lr "
    "peak_lr init_lr eta step_size",
    "training.batch_size": "bs batch batchsize local_bs local_batch_size train_batch_size "
    "mini_batch_size minibatch_size per_device_train_batch_size",
    "training.epochs": "epoch ep local_ep local_epoch local_epochs num_epochs n_epochs max_epochs "
    "num_train_epochs num_local_epochs client_epochs",
    "training.weight_decay": "wd decay weightdecay l2 l2_reg",
    "training.momentum": "m mom sgd_momentum",
    "training.beta1": "b1 betas adam_beta1",
    "training.optimizer": "optim opt optimiser client_optimizer local_optimizer",
    "training.schedule": "scheduler lr_schedule lr_scheduler lr_scheduler_type sched",
    "training.warmup_rounds": "warmup warm_up warmup_epochs warmup_steps num_warmup_rounds",
    "training.clip_norm": "clip grad_clip clip_grad clip_grad_norm gradient_clipping max_grad_norm "
    "gradient_clip_val",
    "training.label_smoothing": "smoothing ls",
    "clients": "client num_clients n_clients nclients number_of_clients total_clients num_users "
    "users num_nodes nodes num_supernodes supernodes num_partitions parties num_parties",
    "rounds": "round num_rounds n_rounds nrounds number_of_rounds num_server_rounds server_rounds "
    "comm_round comm_rounds communication_rounds global_rounds global_epochs",
    "fraction": "frac fraction_fit fraction_train client_fraction sample_fraction participation "
    "participation_rate participation_fraction join_ratio sample_rate",
    "min_clients": "min_fit_clients min_train_nodes min_available_clients min_available_nodes",
    "seed": "random_seed manual_seed rng_seed random_state",
    "budget": "byte_budget max_bytes bytes communication_budget",
    "target_accuracy": "target target_acc goal",
    "checkpoint_every": "save_every save_steps checkpoint_interval checkpoint_frequency",
    "out": "output output_dir out_dir outdir output_folder save_dir save_path log_dir logdir "
    "result_dir results_dir results run_dir exp_dir",
    "data.name": "dataset data_set dataset_name data_name data_dir data_path data_root",
    "data.partition": "partitioner partitioning partition_method partition_type split_method iid "
    "non_iid noniid heterogeneity",
    "data.alpha": "dirichlet_alpha dir_alpha alpha_dirichlet concentration dirichlet_beta",
    "data.classes_per_client": "num_classes_per_client labels_per_client classes_per_partition",
    "data.limit": "max_samples max_train_samples num_samples subset n_samples",
    "data.test_fraction": "test_size test_split val_split test_ratio",
    "model.name": "arch architecture backbone net network model_name model_name_or_path",
    "model.weights": "weight ckpt checkpoint_path pretrained pretrained_path weights_path "
    "init_checkpoint",
    "model.image_size": "img_size input_size resolution image_resolution",
    "model.patch_size": "patch patchsize",
    "encryption.steps": "cipher ciphers encrypt encryption_steps encryption_method scheme",
    "encryption.scope": "key_scope",
    "encryption.key_file": "key keyfile key_path key_ring keyring secret secret_file",
    "finetuning.method": "peft peft_method peft_type tuning finetune fine_tune fine_tuning "
    "train_mode tuning_method",
    "finetuning.rank": "r lora_r lora_rank rank_r lora_dim lora_attn_dim",
    "finetuning.alpha": "lora_alpha lora_scale lora_scaling",
    "finetuning.targets": "target_modules lora_targets lora_target_modules lora_modules",
    "strategy.name": "algorithm algo alg aggregator aggregation aggregation_strategy strategy_name "
    "server_strategy fl_algorithm",
    "privacy.noise_multiplier": "sigma noise dp_noise noise_scale",
    "privacy.clipping_norm": "dp_clip clipping l2_norm_clip max_norm clip_bound",
    "privacy.secure_aggregation": "secagg secure_agg secureaggregation",
    "compression.uplink.codec": "compress quantize quantization quantisation bits uplink_codec",
    "compression.downlink.codec": "downlink_codec",
    "engine.device": "gpu use_gpu use_cuda cuda cpu gpus num_gpus n_gpu n_gpus accelerator",
    "engine.workers": "worker num_workers n_workers processes num_processes n_jobs jobs cpus "
    "num_cpus threads",
    "engine.cohort": "cohort_size clients_per_worker",
    "engine.ray_address": "ray address",
    "engine.precision": "amp fp16 bf16 mixed_precision half use_amp dtype",
    "engine.round_timeout": "timeout",
    "evaluation.by": "evaluate eval evaluation_by",
}

# The names of other programs for each flag that does not stand for a single setting.
FLAGS: Mapping[str, str] = {
    "--config": "cfg conf config_file yaml file c",
    "--resume": "continue restart resume_from resume_from_checkpoint load",
    "--verbose": "debug v loud log_level",
    "--compare": "sweep grid grid_search",
    "--seeds": "num_seeds n_seeds",
    "--set": "override overrides option",
    "--help": "usage info list_settings",
}

# The names of other programs for values of settings.
VALUES: Mapping[str, str] = {
    "cuda": "gpu nvidia cuda:0 gpu:0",
    "dirichlet": "non-iid noniid non_iid dir",
    "adamw": "adam",
    "head": "linear linear_probe linear-probe probe classifier",
    "full": "all fine-tuning finetuning full_finetuning fft",
    "constant": "none fixed",
}


def meant(given: object, names: Iterable[str]) -> list[str]:
    """Returns the valid names that the user may have meant by an unknown name.

    Args:
        given: The text that the user wrote: the path of a setting, the end of a path, or a value.
        names: The valid names.

    Returns:
        The valid names whose last part equals the last part of `given`, and the valid names for
        which other programs use the name `given`.

    Example:
        >>> meant("lr", ["training.learning_rate", "training.epochs"])
        ['training.learning_rate']
        >>> meant("alpha", ["data.alpha", "finetuning.alpha", "rounds"])
        ['data.alpha', 'finetuning.alpha']
        >>> meant("gpu", ["auto", "cpu", "cuda"])
        ['cuda']
    """
    wanted = _plain(str(given).rpartition(".")[2])
    known = list(names)
    same_end = [name for name in known if _plain(name.rpartition(".")[2]) == wanted]
    called = [name for table in (SETTINGS, VALUES) for name in _called(wanted, table)]
    return list(dict.fromkeys(same_end + [name for name in called if name in known]))


def flags_meant(given: str) -> list[str]:
    """Returns the flags that the user may have meant by an unknown flag.

    This function finds only flags that do not stand for a single setting, such as ``--resume``. The
    function `meant` finds the setting of any other flag.

    Example:
        >>> flags_meant("--resume-from")
        ['--resume']
    """
    return _called(_plain(given.lstrip("-")), FLAGS)


def _called(wanted: str, table: Mapping[str, str]) -> list[str]:
    """Returns the keys of a table that have the name `wanted` among their other names."""
    return [name for name, others in table.items() if wanted in map(_plain, others.split())]


def _plain(name: str) -> str:
    """Returns a name in lower case, with underscores in place of hyphens."""
    return name.lower().replace("-", "_")
