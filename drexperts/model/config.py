"""The model's configuration: frozen dataclasses, two presets, and sizes with or without weights."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self, get_args

from drexperts.model.field_types import check_fields
from drexperts.runtime.errors import ConfigError
from drexperts.runtime.quoting import quoted

# The ten distortions in the order of the paper; the words are DA-CLIP's own prompts.
DISTORTIONS = (
    "motion-blurry",
    "hazy",
    "jpeg-compressed",
    "low-light",
    "noisy",
    "raindrop",
    "rainy",
    "shadowed",
    "snowy",
    "uncompleted",
)
# Those of which a prior that starts from nothing sees synthetic stand-ins; see
# `training.from_nothing`.
LEARNT = ("motion-blurry", "jpeg-compressed", "low-light", "noisy", "snowy", "uncompleted")
PRESETS = ("paper", "official")

# timm's names of the published encoders; `custom` is any other size.
Architecture = Literal[
    "deit3_small_patch16_224",
    "deit3_small_patch16_384",
    "deit3_base_patch16_224",
    "deit3_base_patch16_384",
    "custom",
]
# The published weights that training starts from; `none` for an encoder that starts from nothing.
Weights = Literal["fb_in22k_ft_in1k", "fb_in1k", "none"]

# The encoder of each size. Weights are published of `small` and `base` only. The numbers of `tiny`
# are ours: see "what holds a small model back" in docs/log.md.
_ENCODERS: dict[str, dict[str, Any]] = {
    "tiny": {"patch_size": 8, "width": 64, "depth": 2, "heads": 2},
    "small": {"patch_size": 16, "width": 384, "depth": 12, "heads": 6},
    "base": {"patch_size": 16, "width": 768, "depth": 12, "heads": 12},
}
# The prior of a model that starts from nothing.
_OWN_CONTROLLERS: dict[str, dict[str, Any]] = {
    "tiny": {"patch_size": 16, "width": 64, "depth": 2, "heads": 2, "embedding": 64},
    "small": {"patch_size": 16, "width": 192, "depth": 3, "heads": 3, "embedding": 64},
    "base": {"patch_size": 16, "width": 192, "depth": 3, "heads": 3, "embedding": 64},
}
SIZES = tuple(_ENCODERS)
LEAST_IMAGE_SIZE = 128  # px; below, a crop shows little of a photograph

# A configuration can come from a stranger's file. These limits allow ViT-H and refuse what would
# fill the memory; the files of weights are compared with the sizes before a model is made.
_LIMITS = {
    "image_size": (1, 2048),
    "patch_size": (1, 128),
    "width": (1, 2048),
    "depth": (1, 64),
    "heads": (1, 64),
    "embedding": (1, 2048),
    "warmup_epochs": (0, 1000),
    "grid": (1, 128),
    "attention_scale": (-1e4, 1e4),
    "alpha_init": (-1e4, 1e4),
    "lambda_init": (-1e4, 1e4),
}
_MOST_PARAMETERS = 1e9  # of one transformer's blocks; ViT-H has 0.63e9


@dataclass(frozen=True)
class EncoderConfig:
    """The image encoder, a DeiT-III in any size.

    `architecture` and `weights` follow the sizes: whatever is passed, they become `custom` and
    `none` where no published encoder has them. Old checkpoints name one that they only resemble.

    Raises ConfigError for sizes that contradict each other or are beyond all published models.
    """

    architecture: Architecture = "deit3_small_patch16_384"
    weights: Weights = "fb_in22k_ft_in1k"
    image_size: int = 384
    patch_size: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6

    def __post_init__(self) -> None:
        check_fields(EncoderConfig, vars(self), "encoder.", _LIMITS)
        _check_sizes("encoder", self)
        known = get_args(Architecture)
        if (name := f"{self.published}_{self.image_size}") not in known:
            name = "custom"
        object.__setattr__(self, "architecture", name)
        if self.published is None:
            object.__setattr__(self, "weights", "none")

    @property
    def published(self) -> str | None:
        """The published encoder of these sizes at any image size, as `deit3_small_patch16`."""
        for size in ("small", "base"):
            if _ENCODERS[size].items() <= vars(self).items():
                return f"deit3_{size}_patch16"
        return None

    @property
    def name(self) -> str:
        """What people read: timm's name where every size is the published one, else the sizes."""
        if self.architecture == "custom":
            return _described(self)
        return self.architecture + ", without published weights" * (self.weights == "none")

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class ControllerConfig:
    """The prior: a CLIP image tower, by default that of DA-CLIP. Raises as `EncoderConfig` does."""

    image_size: int = 224
    patch_size: int = 32
    width: int = 768
    depth: int = 12
    heads: int = 12
    embedding: int = 512

    def __post_init__(self) -> None:
        check_fields(ControllerConfig, vars(self), "controller.", _LIMITS)
        _check_sizes("controller", self)

    @property
    def name(self) -> str:
        """What people read: DA-CLIP only where every size is that of DA-CLIP."""
        if self.is_daclip:
            return "DA-CLIP ViT-B/32"
        return f"a small prior trained on synthetic distortions: {_described(self)}"

    @property
    def is_daclip(self) -> bool:
        """Whether every size is that of DA-CLIP, by which a prior is known."""
        return self == ControllerConfig()

    @property
    def words(self) -> str:
        """What the names of the ten distortions mean with this prior."""
        if self.is_daclip:
            return "DA-CLIP was trained to name these ten distortions"
        rest = [name for name in DISTORTIONS if name not in LEARNT]
        return (
            f"the prior knows synthetic stand-ins for at most {', '.join(LEARNT)}; "
            f"{', '.join(rest)} are names only"
        )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class DRExpertsConfig:
    """What DR.Experts is built from. The defaults are the preset `paper`.

    The fields after `controller` are switches: points where the paper and the released code
    differ, or on which the paper is silent. Each is independent of the others.

        config = DRExpertsConfig.preset_named("official", size="base")
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    controller: ControllerConfig = field(default_factory=ControllerConfig)

    # The controller's input: CLIP statistics once, or on top of ImageNet's (a released defect).
    clip_norm: Literal["once", "twice"] = "once"
    clip_antialias: bool = True
    # Eq. 1 on the controller's tokens (F_D in R^{NxE}) or on its pooled vector (one row for all).
    distortion_source: Literal["tokens", "pooled"] = "tokens"
    # LayerNorm on the product of embedding and prompt, before any upsampling.
    product_norm: bool = True
    # Keys of the distortion branch: W LN(E_dis), or W LN([F_D ; up(L_hidden)]).
    distortion_keys: Literal["embedding", "hidden"] = "embedding"
    projections: Literal["per_expert", "shared"] = "per_expert"
    # None is 1/sqrt(E), as released; Eq. 2 prints none, which is 1.0.
    attention_scale: float | None = None
    # Expert i sees the semantic tokens normalised once, or i + 1 times over (a released defect).
    semantic_norm: Literal["single", "iterated"] = "single"
    value_order: Literal["semantic_first", "distortion_first"] = "semantic_first"
    alpha: Literal["per_expert", "shared"] = "per_expert"
    alpha_init: float = 0.5
    lambda_init: float = 0.0
    # What the weight generator reads: [F_distortion, F, F - F_Group] or [F_Group, F, F_Group - F].
    group_features: Literal["distortion", "refined"] = "distortion"
    score_bias: Literal["inside", "outside"] = "inside"
    warmup_epochs: int = 0
    # Side of the token grid that the hidden features are upsampled to; None takes the encoder's.
    grid: int | None = None

    def __post_init__(self) -> None:
        check_fields(DRExpertsConfig, vars(self), "", _LIMITS)
        if self.grid not in (None, self.encoder.grid):
            raise ConfigError(
                f"the grid is fixed at {self.grid}x{self.grid}, but {self.encoder.image_size} px "
                f"images give {self.encoder.grid}x{self.encoder.grid} tokens: set grid=None or "
                f"image_size={self.grid * self.encoder.patch_size}"
            )

    @classmethod
    def paper(cls, size: str = "small", image_size: int = 384) -> Self:
        """The paper's equations. Where it is silent, the released code without its defects."""
        return cls(encoder=encoder_config(size, image_size))

    @classmethod
    def official(cls, size: str = "small", image_size: int = 384) -> Self:
        """The released code with its defects. The authors' checkpoints need this preset."""
        return cls(
            encoder=encoder_config(size, image_size),
            clip_norm="twice",
            clip_antialias=False,
            distortion_source="pooled",
            distortion_keys="hidden",
            projections="shared",
            semantic_norm="iterated",
            value_order="distortion_first",
            alpha="shared",
            group_features="refined",
            score_bias="outside",
            warmup_epochs=3,
            grid=24,
        )

    @classmethod
    def preset_named(cls, name: str, size: str = "small", image_size: int = 384) -> Self:
        """One of `PRESETS`; any other name is a ConfigError."""
        if name not in PRESETS:
            raise ConfigError(f"preset {quoted(name)}: choose {' or '.join(PRESETS)}")
        made: Self = getattr(cls, name)(size, image_size)
        return made

    @classmethod
    def from_nothing(cls, size: str, image_size: int, preset: str = "paper") -> Self:
        """A preset of which no weights are published: one of `SIZES` with a small prior of ours."""
        made = cls.preset_named(preset, size, image_size)
        prior = ControllerConfig(image_size=image_size, **_OWN_CONTROLLERS[size])
        return made.with_sizes(replace(made.encoder, weights="none"), prior)

    def with_sizes(self, encoder: EncoderConfig, controller: ControllerConfig) -> Self:
        """The same switches on other sizes; a fixed grid follows the encoder."""
        grid = None if self.grid is None else encoder.grid
        return replace(self, encoder=encoder, controller=controller, grid=grid)

    @property
    def parts(self) -> dict[str, str]:
        """What the model is made of, and what its distortions' names mean, as people read it."""
        return {
            "encoder": self.encoder.name,
            "prior": self.controller.name,
            "names of distortions": self.controller.words,
        }

    @property
    def scale(self) -> float:
        """The factor on both attention logits."""
        return self.encoder.width**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def preset(self) -> str:
        """`paper` or `official` where all switches agree with that preset, else `custom`."""
        for name in PRESETS:
            if self == self.preset_named(name).with_sizes(self.encoder, self.controller):
                return name
        return "custom"

    def as_dict(self) -> dict[str, Any]:
        """The configuration as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `as_dict`. Raises ConfigError for unknown fields and invalid values."""
        sizes = {"encoder": EncoderConfig, "controller": ControllerConfig}
        try:
            nested = {name: kind(**values[name]) for name, kind in sizes.items() if name in values}
            return cls(**{**values, **nested})
        except TypeError as error:
            raise ConfigError(f"not a DRExpertsConfig: {error}") from error


def encoder_config(size: str, image_size: int) -> EncoderConfig:
    """The encoder of a size, for images of `image_size` px.

    Raises ConfigError, which names valid values, for an unknown size and an impossible image size.
    """
    if size not in _ENCODERS:
        raise ConfigError(f"no size {quoted(size)}: choose {' or '.join(SIZES)}")
    # Also those of the prior that a model gets which starts from nothing.
    patch = max(sizes[size]["patch_size"] for sizes in (_ENCODERS, _OWN_CONTROLLERS))
    if image_size < LEAST_IMAGE_SIZE or image_size % patch:
        below = max(image_size - image_size % patch, LEAST_IMAGE_SIZE)
        near = dict.fromkeys((below, max(below + patch * (image_size > below), LEAST_IMAGE_SIZE)))
        raise ConfigError(
            f"an image size of {image_size} px is not possible: {size} takes multiples of its "
            f"patches of {patch} px from {LEAST_IMAGE_SIZE}, such as {' or '.join(map(str, near))}"
        )
    return EncoderConfig(image_size=image_size, **_ENCODERS[size])


def _described(part: EncoderConfig | ControllerConfig) -> str:
    return (
        f"ViT of {part.depth} blocks, width {part.width}, patches of {part.patch_size} px, "
        f"{part.image_size} px images"
    )


def _check_sizes(name: str, part: EncoderConfig | ControllerConfig) -> None:
    if part.image_size % part.patch_size or part.width % part.heads:
        raise ConfigError(
            f"{name}: image_size {part.image_size} must be a multiple of patch_size "
            f"{part.patch_size}, and width {part.width} a multiple of heads {part.heads}"
        )
    most_patches = _LIMITS["grid"][1]
    if part.grid > most_patches or 12 * part.depth * part.width**2 > _MOST_PARAMETERS:
        raise ConfigError(
            f"{name} is too large: patch_size {part.patch_size} gives {part.grid}x{part.grid} "
            f"patches of at most {most_patches}x{most_patches}, and depth {part.depth} at width "
            f"{part.width} gives {12 * part.depth * part.width**2:.1e} parameters of at most "
            f"{_MOST_PARAMETERS:.0e}"
        )
