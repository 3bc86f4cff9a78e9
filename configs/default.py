"""Every key of the configuration, with its meaning, unit and range; the recipe is NVIDIA's for ResNet-50 v1.5.

Other configs start from this one and change a few lines; on the command line it is `--config.key=value`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # base of every random stream: weights, order, crops, mixup; integer >= 0
    config.epochs = 90  # passes over the training images, also the length of the schedule; integer >= 1
    config.batch_size = 256  # images per device in one forward pass; integer >= 1
    config.precision = "bf16"  # convolutions and activations: fp32, tf32, bf16 or fp16; parameters and loss stay fp32
    config.all_reduce = "fp32"  # of gradients, over devices: fp32, bf16 (rounded) or ordered; see docs/precision.md
    config.parallel = "pmap"  # how the step is spread over devices: pmap or shard_map (same numbers)

    config.model = model = ConfigDict()
    model.arch = "resnet50"  # resnet18, 34, 50, 101, 152, resnext50-32x4d, resnext101-32x4d, se-resnet50 or
    # se-resnext101-32x4d
    model.stages = ()  # blocks per stage, such as (3, 4, 6, 3); (): those of model.arch
    model.width = 64  # channels of the stem; every layer scales with it; integer >= 8
    model.widths = ()  # width of each stage, such as (64, 128, 256, 512); (): model.width times 1, 2, 4, ...
    model.se_units = 0  # hidden units of squeeze and excitation; 0: a sixteenth of the channels (timm); NVIDIA has 16
    model.num_classes = 0  # 0: as many as there are class folders (synthetic data: 1000); integer >= 0
    model.init = "fanin"  # He initialisation of convolutions: fanin or classic (fan-out); also grp-fanin, grp-fanout
    model.zero_init_last_gamma = False  # True: every residual block starts as the identity (Goyal et al. 2017)
    model.pretrained_weights = ""  # weight file, or the folder of a run, that a new run starts from, with its
    # architecture unless the command line gives one (also --pretrained_weights FILE); "": none
    model.conv_lowering = "auto"  # native, matmul (1x1 and small 3x3), dot1x1, or auto: matmul on CPU, native on GPU
    model.stem = "auto"  # first convolution: conv, padded (4 channels), space_to_depth, or auto: padded on GPU in bf16
    model.max_pool = "fused"  # with BatchNorm and ReLU before it; indexed, alone; native, XLA's select-and-scatter
    model.fused_norm = True  # BatchNorm, sum and ReLU have one derivative that keeps no mask; False: left to JAX
    model.fold_batch_norm = "auto"  # BatchNorm as part of the convolutions: on, off or auto, in predict and in
    # benchmarks of inference, but not in evaluate, which repeats the figures of training to the last digit

    config.data = data = ConfigDict()
    data.dir = "/data/imagenet"  # holds train/<class>/<image> and val/<class>/<image>, or train/*.tar and val/*.tar
    data.train_list = ""  # file list of the training images, a path and a class per line, see docs/data.md; "": none
    data.val_list = ""  # the same for validation
    data.val_share = 0.0  # share of each class that is set apart for validation, drawn by seed, of a data.dir without
    # val/, such as 0.2 of <class>/<image>; 0 up to, not including, 1, 0: val/ is there
    data.builtin = ""  # digits: training writes scikit-learn's 1,797 digits to a data.dir that does not exist
    data.backend = "dali-cpu"  # dali-cpu, dali-gpu (decodes on the GPU) or synthetic (one constant random batch)
    data.image_size = 224  # pixels, height and width that the model sees; integer >= 32
    data.image_sizes = ()  # training only: ((first epoch, pixels), ...), such as ((0, 128), (30, 176)); (): image_size
    data.resize = 0  # pixels, shorter side before the centre crop in evaluation; integer >= data.image_size, or 0: as
    # 256 to 224, in proportion to data.image_size
    data.crop_area = (0.08, 1.0)  # training crop, share of the image's area (smallest, largest); in (0, 1]
    data.crop_aspect = (3 / 4, 4 / 3)  # training crop, width over height (smallest, largest); in [0.1, 10]
    data.transform = "torchvision"  # pixels of torchvision (antialiased) or of NVIDIA's dali pipeline (not antialiased)
    data.exif_rotation = False  # True: photographs are turned upright, as their EXIF tag says; False: seen as stored
    data.background = ()  # colour behind transparent images, such as (255, 255, 255); (): their transparency is dropped
    data.mean = (0.485, 0.456, 0.406)  # of red, green and blue in 0 to 1, subtracted from pixels; ImageNet's
    data.std = (0.229, 0.224, 0.225)  # standard deviations, by which they are then divided; > 0
    data.flip = 0.5  # probability of a horizontal flip in training; 0 to 1
    data.augment = "none"  # after crop and flip: none, randaugment, autoaugment or trivialaugment (DALI's)
    data.randaugment = (2, 9)  # operations per image and their magnitude, 0 to 30
    data.on_bad_file = "substitute"  # an image that cannot be decoded: substitute leaves it out, error ends the run
    data.max_bad_files = 100  # such images that a run puts up with; integer >= 0
    data.workers = 5  # DALI threads per device; integer >= 1
    data.hw_decoder_load = 0.65  # dali-gpu: share of JPEGs that go to the GPU's JPEG engine, if it has one; 0 to 1
    data.prefetch = 2  # batches made ready on the device ahead of the step; integer >= 1
    data.synthetic_images = (1281167, 50000)  # images per epoch that synthetic data stands for (training, validation)

    config.recipe = recipe = ConfigDict()
    recipe.lr = 0.256  # peak learning rate for a global batch of recipe.lr_batch_size; > 0
    recipe.lr_batch_size = 256  # the peak is lr * global batch / this (linear scaling); 0: recipe.lr as it stands
    recipe.schedule = "cosine"  # after the warm-up: cosine or linear to the end, or step down at the milestones
    recipe.lr_update = "step"  # the rate moves every step, or every epoch as in NVIDIA's code
    recipe.warmup_epochs = 8  # epochs in which the rate rises linearly to its peak; >= 0, a shorter run ends below it
    recipe.end_lr = 0.0  # where the cosine schedule ends; >= 0
    recipe.milestones = (30, 60, 80)  # step schedule: epochs after which the rate falls; integers >= 1
    recipe.milestone_factor = 0.1  # step schedule: factor at each milestone; > 0, at most 1
    recipe.poly_power = 2.0  # poly schedule: the rate falls as this power of the time that is left; > 0
    recipe.optimizer = "sgd"  # sgd, lars or lamb (the latter two for batches of thousands)
    recipe.momentum = 0.875  # of SGD and LARS; 0 up to, not including, 1
    recipe.nesterov = False  # Nesterov's momentum
    recipe.lars_trust = 0.001  # of LARS: rate of a tensor by its norms; > 0
    recipe.beta1 = 0.9  # of LAMB: decay of the average of gradients; 0 up to, not including, 1
    recipe.beta2 = 0.999  # of LAMB: decay of the average of squared gradients; 0 up to, not including, 1
    recipe.eps = 1e-6  # of LAMB: added to the root of the latter; > 0
    recipe.clip_norm = 0.0  # gradients of a larger global norm are scaled down to it; >= 0, 0: never
    recipe.weight_decay = 1 / 32768  # coupled L2; >= 0
    recipe.decay_mask = "no_bn"  # decays all but BatchNorms; no_bn_bias: nor biases; reference: NVIDIA's code; all
    recipe.loss = "cross_entropy"  # cross_entropy, or bce: binary cross-entropy of each class, averaged over them
    recipe.bce_threshold = 0.0  # bce: a (mixed) target above it counts as 1, any other as 0; 0: targets as they are
    recipe.label_smoothing = 0.1  # probability spread evenly over all classes; 0 up to, not including, 1
    recipe.mixup = 0.0  # alpha of mixup's Beta(alpha, alpha); 0: off
    recipe.cutmix = 0.0  # alpha of CutMix's Beta(alpha, alpha); 0: off
    recipe.cutmix_share = 0.5  # probability of CutMix, if mixup is on too: each forward pass draws one; 0 to 1
    recipe.random_erasing = 0.0  # probability that a box of an image is set to the mean colour; 0 to 1
    recipe.mixup_draw = "device"  # each device and forward pass draws its mixing, or global: all devices have the same
    recipe.optimizer_batch_size = 0  # global batch of one update, reached by accumulating gradients; 0: no accumulation
    recipe.running_average = "mean"  # of BatchNorm: mean of the devices' running statistics, or those of the first
    recipe.bn_group = 1  # devices that share BatchNorm's batch statistics: 1, each its own; G, neighbours; 0, all
    recipe.ema_decay = 0.0  # of moving averages of weights and running statistics, such as 0.9999; 0: none
    recipe.exact_reference = False  # True: all departures of NVIDIA's code from its documentation, see docs/recipe.md

    config.tune = tune = ConfigDict()  # fine-tuning of model.pretrained_weights, see docs/fine-tuning.md
    tune.freeze = ()  # parts that are not trained, such as ("stem", "layer1"); all but ("fc",): a linear probe
    tune.lr_decay = 1.0  # factor of the learning rate from each part to the one before it, 1 for fc; > 0, at most 1
    tune.lr_scales = ()  # factors for single parts, such as (("layer4", 0.1),); they go before lr_decay
    tune.new_head = False  # True: a new classifier even if that of the weight file fits

    config.loss_scale = loss_scale = ConfigDict()  # only read with precision fp16
    loss_scale.mode = "static"  # static or dynamic; either way a step whose gradients overflow changes nothing else
    loss_scale.init = 128.0  # (first) scale; >= 1
    loss_scale.growth_interval = 2000  # dynamic: good steps in a row before the scale grows; integer >= 1
    loss_scale.growth = 2.0  # dynamic: factor after growth_interval good steps; > 1
    loss_scale.backoff = 0.5  # dynamic: factor after an overflow; between 0 and 1
    loss_scale.floor = 1.0  # dynamic: smallest scale; > 0

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every_epochs = 1  # epochs between checkpoints (the last epoch always has one); integer >= 1
    checkpoint.every_minutes = 15.0  # minutes between checkpoints within an epoch; >= 0, 0: none
    checkpoint.keep = 2  # newest checkpoints kept, beside the best by val.top1; integer >= 1
    checkpoint.gather = False  # True: also save and keep the ends of epochs 1 to 11, 21, 31, ..., as NVIDIA's code can

    config.report = report = ConfigDict()
    report.print_every = 20  # steps between two lines of training metrics; integer >= 1
    report.file = "metrics.jsonl"  # name of the metrics file in the work folder, none of the run's other files
    report.tensorboard = True  # also write TensorBoard events, to tensorboard/ in the work folder
    report.wandb = ""  # project of Weights & Biases that also gets the metrics; "": none
    report.mlflow = ""  # experiment of MLflow that also gets the metrics (server: MLFLOW_TRACKING_URI); "": none
    report.dle_json = ""  # also write NVIDIA's DLLL lines to this file (relative to the work folder); "": no

    config.run = run = ConfigDict()
    run.resume = ""  # checkpoint.pth.tar of NVIDIA's code that a new run goes on from (also --resume FILE); "": none
    run.prof = 0  # only so many steps of each epoch and batches of each validation, and no checkpoint; 0: all of them
    run.training_only = False  # skip validation
    run.target_top1 = 0.0  # stop when validation reaches it, per cent (also --target_top1 X); 0 to 100, 0: never
    run.evaluate = False  # instead of training, validate a weight file that the command names, or the latest checkpoint
    run.save_checkpoints = True  # False: nothing to resume from
    run.max_skipped_steps = 50  # steps in a row without finite gradients, all left out, that stop the run; integer >= 1
    run.compile_cache = "auto"  # folder that keeps compiled programs; auto: ~/.cache/rn50-jax; "": none
    run.xla_flags = ""  # flags for XLA, such as "--xla_a=1 --xla_b=2"; those of the environment's XLA_FLAGS go before
    run.hang_timeout = 1800  # seconds without a finished step or batch until the run ends itself (the first: 10 times)
    run.heartbeat_timeout = 60  # several processes: seconds until the others end after one has died; integer >= 10
    return config.lock()
