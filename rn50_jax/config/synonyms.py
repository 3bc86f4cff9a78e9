"""Other names for our config keys and options: from timm, torchvision, Keras, Lightning and NVIDIA's scripts.

Each entry of a table is what is meant here, an arrow, and other names for it, in lower case with underscores and
without sections; lines that begin with spaces continue it.
"""

from collections.abc import Collection

_KEYS = """
seed <- random_seed random_state rng_seed manual_seed
epochs <- epoch num_epochs max_epochs n_epochs nb_epoch num_train_epochs run_epochs
batch_size <- b bs batch batchsize train_batch_size per_device_batch_size per_device_train_batch_size val_batch vb
    val_batch_size validation_batch_size eval_batch_size test_batch_size
precision <- amp fp16 bf16 half float16 bfloat16 mixed_precision amp_dtype amp_impl dtype use_amp apex_amp native_amp
    model_dtype allow_tf32 tf32
model.arch <- model arch a architecture net network backbone model_name model_type encoder variant depth
model.num_classes <- n_classes nb_classes nclasses num_labels classes
model.init <- model_config init_scheme weight_init
model.zero_init_last_gamma <- zero_init_last zero_init_residual zero_gamma
model.pretrained_weights <- pretrained initial_checkpoint pretrained_path pretrained_cfg checkpoint_path finetune
    fine_tune weights load_weights load_from init_weights weights_path weights_file
data.dir <- data data_dir data_path datadir datapath dataset dataset_dir dataset_path root path data_root folder
    input_dir image_dir images train_dir train_data directory imagenet imagenet_dir imagenet_path
data.val_share <- val_split validation_split val_fraction val_ratio valid_pct val_size test_size split holdout
data.backend <- data_backend loader data_loader
data.workers <- j num_workers n_workers workers nthreads num_threads dataloader_num_workers cpu_workers
data.image_size <- img_size input_size image_size imgsz imgsize im_size size resolution crop_size train_crop_size
    val_crop_size train_size image_dim target_size
data.resize <- val_resize val_resize_size resize_size crop_pct val_size_px test_resize
data.crop_area <- scale crop_scale rrc_scale random_resized_crop_scale min_scale
data.crop_aspect <- ratio crop_ratio rrc_ratio aspect_ratio
data.flip <- hflip hflip_prob flip_prob horizontal_flip random_flip flip_p
data.vertical_flip <- vflip vflip_prob flipud
data.augment <- aa auto_augment autoaugment automatic_augmentation auto_augment_policy augmentation augmentations
    trivialaugment trivial_augment rand_augment
data.mean <- img_mean image_mean pixel_mean norm_mean normalize_mean
data.std <- img_std image_std pixel_std norm_std normalize_std
recipe.lr <- lr learning_rate learningrate base_lr blr max_lr peak_lr init_lr initial_lr lr_base
recipe.lr_batch_size <- lr_base_size base_batch_size reference_batch_size
recipe.schedule <- sched scheduler lr_scheduler lr_schedule schedule lr_policy lr_decay_schedule scheduler_name
recipe.warmup_epochs <- warmup warmup_epochs lr_warmup_epochs warm_up num_warmup_epochs warm_up_epochs
recipe.end_lr <- min_lr lr_min eta_min final_lr end_learning_rate
recipe.milestones <- decay_milestones lr_steps lr_milestones decay_epochs lr_step_size step_size
recipe.milestone_factor <- lr_gamma gamma decay_rate lr_decay_rate
recipe.optimizer <- opt optim optimizer optimiser optimizer_name
recipe.nesterov <- nesterov_momentum use_nesterov
recipe.beta1 <- beta_1 opt_betas betas adam_beta1
recipe.beta2 <- beta_2 adam_beta2
recipe.eps <- opt_eps epsilon adam_epsilon
recipe.clip_norm <- clip_grad clip_grad_norm grad_clip gradient_clip gradient_clip_val gradient_clip_norm
    max_grad_norm clipnorm global_clipnorm clip_gradients clip
recipe.weight_decay <- wd weightdecay l2 l2_reg l2_regularization kernel_regularizer
recipe.decay_mask <- norm_weight_decay bias_weight_decay bn_weight_decay no_weight_decay weight_decay_exclude
recipe.loss <- loss_fn loss_function criterion bce_loss bce objective
recipe.bce_threshold <- bce_target_thresh bce_target_threshold
recipe.label_smoothing <- smoothing label_smooth labelsmoothing ls label_smoothing_factor
recipe.mixup <- mixup_alpha mix_up mixup_prob
recipe.cutmix <- cutmix_alpha cut_mix cutmix_prob
recipe.random_erasing <- reprob random_erase random_erasing_prob erasing erase_prob cutout
recipe.optimizer_batch_size <- grad_accum_steps grad_accumulation accum_iter accumulation_steps grad_accum
    accumulate_grad_batches gradient_accumulation_steps gradient_accumulation global_batch_size total_batch_size
    effective_batch_size
recipe.bn_group <- sync_bn syncbn sync_batchnorm sync_batch_norm dist_bn synchronized
recipe.ema_decay <- ema model_ema use_ema model_ema_decay ema_momentum ema_rate model_ema_steps
finetune.freeze <- freeze_layers frozen frozen_layers frozen_stages freeze_backbone freeze_at trainable linear_probe
finetune.lr_decay <- layer_decay layer_wise_lr_decay llrd
finetune.lr_scales <- backbone_lr lr_mult
finetune.new_head <- reset_head reset_classifier reinit_head ignore_mismatched_sizes
loss_scale.init <- static_loss_scale initial_loss_scale init_scale
loss_scale.mode <- dynamic_loss_scale loss_scaler
checkpoint.keep <- checkpoint_hist save_total_limit save_top_k max_to_keep keep_checkpoint_max keep_last_n
checkpoint.every_epochs <- save_freq save_every save_interval save_period save_epochs checkpoint_interval
    checkpoint_freq checkpoint_every every_n_epochs save_every_epochs
checkpoint.gather <- gather_checkpoints
log.print_every <- log_interval log_freq print_freq log_every log_every_n_steps logging_steps log_steps
    print_interval report_every
log.tensorboard <- tb use_tensorboard tensorboard_dir
log.wandb <- log_wandb use_wandb wandb_project
log.mlflow <- log_mlflow use_mlflow mlflow_experiment
log.dle_json <- raport_file report_file dllogger
run.prof <- limit_train_batches steps_per_epoch max_steps max_train_steps
run.evaluate <- eval eval_only test_only validate_only only_eval
run.target_top1 <- target_accuracy target_acc
run.save_checkpoints <- no_checkpoints enable_checkpointing
"""

# The first option counts that the command has.
_OPTIONS = """
--workdir --out <- output output_dir outdir out_dir log_dir logdir save_dir savedir exp_dir experiment model_dir
    workspace run_dir run work_dir result_dir results_dir default_root_dir
--config <- cfg conf config_file config_path recipe yaml
--pretrained_weights --weights <- pretrained initial_checkpoint pretrained_path checkpoint_path finetune model_path
    model_file weights_path weights_file state_dict load_weights
--checkpoint <- ckpt which epoch_to_load checkpoint_step
--ema <- use_ema model_ema
--top_k <- topk k top
--json --out <- results_file json_file
--flip_tta <- tta test_time_augmentation
--num_processes <- world_size nproc
--process_id <- rank node_rank
--coordinator <- dist_url master_addr coordinator_address init_method
--split <- val_share val_split validation_split val_fraction val_ratio valid_pct val_size test_size
--list <- train_list val_list filelist
"""

# Features of others that we do not have, or not as a key; with what to use instead, if there is anything.
_ABSENT = """
knowledge distillation is not supported <- distill distillation distillation_type distillation_alpha distillation_tau
    distill_loss kd kd_loss kd_model teacher teacher_model teacher_path
multi-label classification is not supported: each image has one class; --config.recipe.loss=bce trains a binary
    classifier for each class on it <- multilabel multi_label
dropout is not supported; --config.recipe.label_smoothing, mixup, cutmix and random_erasing are there <- drop dropout
    drop_rate dropout_rate classifier_dropout hidden_dropout
stochastic depth is not supported; --config.recipe.label_smoothing, mixup, cutmix and random_erasing are there <-
    drop_path drop_path_rate droppath drop_connect drop_connect_rate drop_block stochastic_depth stochastic_depth_prob
Adam and AdamW are not supported; --config.recipe.optimizer takes sgd, lars or lamb <- adam adamw adamax nadam lion
    rmsprop
color jitter is not a key of its own; --config.data.augment=randaugment, autoaugment or trivialaugment changes
    brightness, contrast and color among others <- color_jitter colour_jitter color_jitter_prob jitter brightness
    contrast saturation hue grayscale grayscale_prob gaussian_blur gaussian_blur_prob blur three_augment
rotations and shears come with --config.data.augment=randaugment, autoaugment or trivialaugment; photographs are
    turned upright by --config.data.exif_rotation=true <- rotation rotate degrees random_rotation shear translate
    affine
class weights and balanced sampling are not supported: every image is seen once per epoch <- class_weight
    class_weights sample_weight sampler weighted_sampler balanced_sampler balance oversample oversampling focal
    focal_loss focal_gamma
repeated augmentation is not supported: every image is seen once per epoch <- aug_repeats ra_sampler ra_reps
    aug_splits split_bn jsd_loss augmix
there is no early stopping by patience; the best checkpoint is kept, and --target_top1 X ends a run once validation
    reaches X % <- early_stopping early_stop patience patience_epochs es_patience
mixup and CutMix, where both are on, are equally likely <- mixup_switch_prob switch_prob
stochastic weight averaging and Lookahead are not supported; --config.recipe.ema_decay=0.9999 averages weights <- swa
    swa_lr swa_start lookahead sam rho
there is no search for the learning rate; --config.recipe.lr is that of a global batch of
    --config.recipe.lr_batch_size <- lr_finder lr_find auto_lr_find auto_lr
restarts, noise and cool-down of the learning rate are not supported; --config.recipe.schedule takes cosine, linear,
    step or poly <- lr_noise lr_noise_pct lr_noise_std lr_cycle_mul lr_cycle_decay lr_cycle_limit lr_k_decay
    cooldown_epochs warm_restarts t_0 t_mult
the rate at the start of the warm-up is not a key: it rises linearly from near 0 <- warmup_lr lr_warmup_decay
    lr_warmup_method warmup_lr_init warmup_start_lr warmup_prefix
activations are not recomputed to save memory; use a smaller --config.batch_size and reach the global batch with
    --config.recipe.optimizer_batch_size <- grad_checkpointing gradient_checkpointing remat checkpoint_activations
sharding of the model is not supported: every GPU holds all of it (data parallelism) <- fsdp deepspeed zero
    tensor_parallel model_parallel zero_stage
the step is always compiled by XLA <- compile torchcompile torchscript jit xla jit_compile torch_compile
memory layouts are chosen by XLA <- channels_last memory_format cudnn_benchmark data_format
images always have three channels <- in_chans in_channels input_channels channels num_channels
the resampling filter is not a key: it is bilinear, by --config.data.transform=torchvision (antialiased) or dali (not)
    <- interpolation train_interpolation val_interpolation antialias
the same seed gives the same run by itself; see --config.seed <- deterministic use_deterministic_algorithms
the training images are always shuffled, by --config.seed <- shuffle no_shuffle
train/ and val/ are the splits, as class folders, tar shards or lists; see docs/data.md <- train_split val_folder
    val_dir val_data validation_data valid_dir test_dir train_folder
all GPUs that JAX sees are used; for some of them, set CUDA_VISIBLE_DEVICES=0,1 in the environment, and
    JAX_PLATFORMS=cpu for the CPU <- gpu gpus gpu_id gpu_ids num_gpus n_gpus ngpu ngpus device devices accelerator
    cuda no_cuda use_gpu
one process drives all GPUs of a machine; for several processes or machines see docs/multi-node.md <- local_rank
    nproc_per_node dist_backend multiprocessing_distributed distributed nodes nnodes num_nodes
the same command with the same --workdir resumes by itself; --resume FILE is for a checkpoint of NVIDIA's code <-
    resume resume_from resume_from_checkpoint resume_path ckpt_path auto_resume load_checkpoint start_epoch
    initial_epoch restore continue
DALI needs no such setting; two batches are always ready on the device <- pin_memory pin_mem persistent_workers
    prefetch_factor prefetch_size prefetch_batches num_prefetch
"""


def _parse(table: str) -> dict[str, str]:
    """The meaning of each name."""
    entries = (entry.partition(" <- ") for entry in table.replace("\n   ", "").strip().splitlines())
    return {name: meant for meant, _, names in entries for name in names.split()}


KEYS, OPTIONS, ABSENT = map(_parse, (_KEYS, _OPTIONS, _ABSENT))


def normalize(name: str) -> str:
    """Returns a key or an option as the tables have it: lower case, underscores, without its sections."""
    return name.lstrip("-").replace("-", "_").lower().rpartition(".")[2]


def find_key(name: str) -> str | None:
    """Returns our config key for a key or an option of others, such as "recipe.learning_rate"; None if unknown.

    "model.name" and "optimizer.name" are names in sections of their own.
    """
    section, _, word = name.lstrip("-").replace("-", "_").lower().rpartition(".")
    if word in ("name", "type", "kind") and section:
        return KEYS.get(normalize(section))
    return KEYS.get(word)


def find_absent(name: str) -> str | None:
    """Returns what to say of a feature that does not exist here, or not as a key; None if nothing is known of it."""
    return ABSENT.get(normalize(name))


def find_option(name: str, options: Collection[str]) -> str | None:
    """Returns the option among `options` that does what another program's option does; None if unknown."""
    return next((option for option in OPTIONS.get(normalize(name), "").split() if option in options), None)
