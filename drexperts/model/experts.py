"""The distortion-saliency differential module (Eq. 1-2) and the expert weighting (Eq. 3-4).

Symbols, as in the paper: F are the semantic tokens [B, N, d], row 0 being the CLS token; E_dis is
the controller's embedding, E_T the prompts [E, 512], F_D the distortion features. E also counts the
experts in shapes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drexperts.kernels import differential_attention, differential_pooling
from drexperts.kernels.differential_attention import difference_of_softmaxes
from drexperts.model.backbones import Prior
from drexperts.model.config import DISTORTIONS, DRExpertsConfig

EXPERTS = len(DISTORTIONS)


class ExpertLinear(nn.Module):
    """One linear map per expert, or one for all: `weight` is [E or 1, out, in]."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(experts, outputs))
        bound = inputs**-0.5  # nn.Linear's initialisation, per expert
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """[B, E or 1, in] to [B, E, out]; a row of experts stays one row if the map is shared."""
        return self.project(x) + self.bias

    def project(self, x: Tensor) -> Tensor:
        """`forward` without the bias."""
        return expert_matmul(x, self.weight.mT)

    def of(self, expert: int, x: Tensor) -> Tensor:
        """One expert's map on any number of rows, [..., in] to [..., out]."""
        i = expert % len(self.weight)
        return F.linear(x, self.weight[i], self.bias[i])


class AbsorbedQuery(nn.Module):
    """s W_k^T (W_q x + b_q): a query that absorbs the key projection, so that no key is formed.

    The key bias would add the same number to every logit of a row and cancels in the softmax.
    """

    def __init__(self, query: ExpertLinear, key: ExpertLinear, scale: float) -> None:
        super().__init__()
        self.query, self.key, self.scale = query, key, scale

    def forward(self, x: Tensor) -> Tensor:
        """[B, E or 1, in] to [B, E or 1, key width]."""
        return expert_matmul(self.query(x) * self.scale, self.key.weight)


def expert_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, E or 1, in] times weight [E or 1, in, out], expert by expert: [B, E or 1, out]."""
    if len(weight) == 1:
        return x @ weight[0]
    return (x.transpose(0, 1) @ weight).transpose(0, 1)


def bilinear_matrix(source: int, target: int) -> Tensor:
    """Interpolation along one axis, [target, source] float64, with pixel centres aligned."""
    line = torch.eye(source, dtype=torch.float64)[None]
    return F.interpolate(line, target, mode="linear")[0].T.contiguous()


def token_spread(source: int, target: int) -> Tensor:
    """Controller tokens to encoder tokens, [1 + target^2, 1 + source^2] float64; rows sum to 1.

    The CLS token maps to the CLS token, and the square grid is interpolated bilinearly.
    """
    line = bilinear_matrix(source, target)
    return torch.block_diag(torch.ones(1, 1, dtype=torch.float64), torch.kron(line, line))


class DistortionFeatures(nn.Module):
    """Eq. 1: F_D^i = Linear^i(LN(E_dis * E_T^i))."""

    def __init__(self, config: DRExpertsConfig) -> None:
        super().__init__()
        width = config.controller.embedding
        self.pooled = config.distortion_source == "pooled"
        self.norm = nn.LayerNorm(width) if config.product_norm else nn.Identity()
        self.linear = ExpertLinear(EXPERTS, width, config.encoder.width)

    def products(self, embedding: Tensor, prompts: Tensor) -> Tensor:
        """LN(E_dis * E_T), [B, E, M, 512]: M is the number of controller tokens, or 1 if pooled."""
        embedding = embedding[:, :1] if self.pooled else embedding
        products: Tensor = self.norm(embedding[:, None] * prompts[:, None])
        return products

    def pool(self, products: Tensor, coarse: Tensor, total: Tensor) -> Tensor:
        """sum_t p_t F_D[t], [B, E, d].

        Args:
            coarse: the maps summed to controller tokens, [B or 1, E, M].
            total: the sum of a row of the maps, [E, 1].
        """
        pooled = (coarse[:, :, None] @ products)[:, :, 0]
        return self.linear.project(pooled) + total * self.linear.bias

    def dense(self, products: Tensor, spread: Tensor, expert: int) -> Tensor:
        """F_D^i for every token, [B, N, d], or [B, 1, d] if all tokens share one vector."""
        rows = products[:, expert]
        return self.linear.of(expert, rows if rows.shape[1] == 1 else spread @ rows)


class EmbeddingKeys(nn.Module):
    """Keys of the distortion branch as in the paper: the controller's tokens, LN(E_dis)."""

    def __init__(self, config: DRExpertsConfig) -> None:
        super().__init__()
        self.width = config.controller.embedding
        self.norm = nn.LayerNorm(self.width)

    def logits(self, query: Tensor, prior: Prior, feature: Tensor, spread: Tensor) -> Tensor:
        """Absorbed queries [B, E, 512] times keys, [B, E, N], on controller tokens, then spread."""
        return query @ self.norm(prior.embedding).mT @ spread.mT

    def dense(self, prior: Prior, feature: Tensor, spread: Tensor) -> Tensor:
        """What the key projection reads, [B, N, 512], the same for every expert."""
        return spread @ self.norm(prior.embedding)


class HiddenKeys(nn.Module):
    """Keys as released: LN([F_D ; up(L_hidden)]), from the controller's last hidden signal.

    The CLS row of the keys is the expert's own distortion feature, the other rows are the grid.
    """

    def __init__(self, config: DRExpertsConfig) -> None:
        super().__init__()
        self.width = config.encoder.width
        self.project = nn.Linear(config.controller.width, self.width)
        self.norm = nn.LayerNorm(self.width)

    def logits(self, query: Tensor, prior: Prior, feature: Tensor, spread: Tensor) -> Tensor:
        """Absorbed queries [B, E, d] times keys, [B, E, N], without forming a key per token.

        Let h be the centred grid tokens, C = h h^T / d their Gram matrix and U_t the interpolation
        weights of token t. An upsampled token has the variance v_t = U_t C U_t^T, so its logit is
        (v_t + eps)^-1/2 U_t . (h q') with q' = gain * q. LayerNorm's bias adds a constant to each
        row of logits and cancels in the softmax.
        """
        query = query * self.norm.weight
        grid = centred(self._grid(prior))
        upsample = spread[1:, 1:]
        gram = grid @ grid.mT / self.width
        scale = ((upsample @ gram * upsample).sum(-1) + self.norm.eps).rsqrt()  # [B, N - 1]
        rest = query @ grid.mT @ upsample.mT * scale[:, None]
        own = centred(feature)
        own_scale = (own.square().mean(-1) + self.norm.eps).rsqrt()
        first = (query * own).sum(-1) * own_scale
        return torch.cat((first[..., None], rest), dim=-1)

    def dense(self, prior: Prior, feature: Tensor, spread: Tensor) -> Tensor:
        """What the key projection reads for the expert with this feature [B, d]: [B, N, d]."""
        rest = spread[1:, 1:] @ self._grid(prior)
        rows: Tensor = self.norm(torch.cat((feature[:, None], rest), dim=1))
        return rows

    def _grid(self, prior: Prior) -> Tensor:
        grid: Tensor = self.project(prior.hidden)
        return grid


def centred(x: Tensor) -> Tensor:
    """x minus its mean over the last dimension."""
    return x - x.mean(-1, keepdim=True)


class SemanticPooling(nn.Module):
    """LayerNorm of the semantic tokens, and the differential pooling over them.

    `backend` names an implementation of `differential_pooling`; None chooses by the device.
    """

    backend: str | None = None

    def __init__(self, config: DRExpertsConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.encoder.width)
        self.iterated = config.semantic_norm == "iterated"

    def rows(self, tokens: Tensor) -> Tensor:
        """Normalised rows [B, ..., d] as each expert sees them, [B, E or 1, ..., d]."""
        rows = [self.norm(tokens)]
        for _ in range(EXPERTS - 1 if self.iterated else 0):
            rows.append(self.norm(rows[-1]))
        return torch.stack(rows, dim=1)

    def attention(self, tokens: Tensor, query: Tensor) -> Tensor:
        """The semantic attention alone, [B, E or 1, N]; rows sum to 1."""
        keys = self.rows(tokens)  # [B, E or 1, N, d]
        return torch.softmax((keys @ query[..., None])[..., 0], dim=-1)

    def forward(
        self, tokens: Tensor, query: Tensor, logits: Tensor, alpha: Tensor
    ) -> tuple[Tensor, Tensor]:
        norm = (self.norm.weight, self.norm.bias, self.norm.eps)
        return differential_pooling(
            tokens, query, logits, alpha, *norm, iterated=self.iterated, backend=self.backend
        )


class DistortionSaliency(nn.Module):
    """Eq. 2: (softmax(s Q_D K_dis^T) - alpha softmax(s Q K^T)) V, for every expert.

    `forward` computes the CLS row, which is all that reaches the score. It reads each token matrix
    once and forms no Q, K or V, because the query is one row and a softmax sums to one.
    `forward_dense` computes all rows by `differential_attention`. The two agree to rounding, in
    values and gradients.
    """

    spread: Tensor

    def __init__(self, config: DRExpertsConfig) -> None:
        super().__init__()
        width = config.encoder.width
        maps = EXPERTS if config.projections == "per_expert" else 1
        keys = EmbeddingKeys if config.distortion_keys == "embedding" else HiddenKeys
        self.distortion_first = config.value_order == "distortion_first"
        self.features = DistortionFeatures(config)
        self.keys: EmbeddingKeys | HiddenKeys = keys(config)
        self.pooling = SemanticPooling(config)
        self.distortion = self._branch(maps, width, self.keys.width, config.scale)
        self.semantic = self._branch(maps, width, width, config.scale)
        self.value = ExpertLinear(maps, 2 * width, width)
        alphas = EXPERTS if config.alpha == "per_expert" else 1
        self.alpha = nn.Parameter(torch.full((alphas,), config.alpha_init))
        # In float64 and cast when used: a float32 buffer would keep its rounding in float64.
        spread = token_spread(config.controller.grid, config.encoder.grid)
        self.register_buffer("spread", spread, persistent=False)

    @staticmethod
    def _branch(maps: int, width: int, key_width: int, scale: float) -> AbsorbedQuery:
        query, key = ExpertLinear(maps, width, width), ExpertLinear(maps, key_width, width)
        return AbsorbedQuery(query, key, scale)

    def forward(self, tokens: Tensor, prior: Prior, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """The CLS row.

        Args:
            tokens: F, [B, N, d], after the encoder's final norm.
            prior: DA-CLIP's view of the same images.
            prompts: E_T, [E, 512].

        Returns:
            F_distortion at the CLS row [B, E, d] and the maps [B, E, N].
        """
        products = self.features.products(prior.embedding, prompts)
        logits, query = self._cls_row(tokens, prior, prompts, products)
        semantic, maps = self.pooling(tokens, query, logits, self.alpha)
        total = (1 - self.alpha)[:, None]  # the sum of each row of the maps
        pooled = self.features.pooled
        coarse = total.expand(EXPERTS, 1)[None] if pooled else maps @ self.spread.to(prompts)
        distortion = self.features.pool(products, coarse, total)
        return self._value(semantic, distortion) + total * self.value.bias, maps

    def attentions(self, tokens: Tensor, prior: Prior, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """The two attentions of the CLS row, for display. Takes what `forward` takes.

        Returns:
            p1 of the distortion branch and p2 of the semantic one, each [B, E, N]. Their rows sum
            to 1, and the maps are p1 - alpha p2.
        """
        products = self.features.products(prior.embedding, prompts)
        logits, query = self._cls_row(tokens, prior, prompts, products)
        semantic = self.pooling.attention(tokens.to(query), query)
        return torch.softmax(logits, dim=-1), semantic.expand_as(logits)

    def _cls_row(
        self, tokens: Tensor, prior: Prior, prompts: Tensor, products: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The distortion branch's logits [B, E, N] and the semantic query [B, E or 1, d]."""
        feature = self.features.linear(products[:, :, 0])  # F_D at the CLS row, [B, E, d]
        spread = self.spread.to(prompts)
        logits = self.keys.logits(self.distortion(feature), prior, feature, spread)
        query = self.semantic(self.pooling.rows(tokens[:, 0].to(prompts)))
        return logits, query

    def forward_dense(
        self,
        tokens: Tensor,
        prior: Prior,
        prompts: Tensor,
        *,
        whole_maps: bool = False,
        backend: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All rows of Eq. 2, as printed. Takes what `forward` takes.

        Args:
            whole_maps: return every row of the maps instead of the CLS row.
            backend: an implementation of `differential_attention`. None chooses by the device, and
                plain PyTorch for torch.export, because its readers do not know our operation.

        Returns:
            F_distortion [B, E, N, d] and the maps [B, E, N], or whole [B, E, N, N].
        """
        if backend is None and torch.compiler.is_exporting():
            backend = "reference"
        products = self.features.products(prior.embedding, prompts)
        semantic = self.pooling.rows(tokens).unbind(1)
        each = [
            self._dense_expert(i, semantic[i % len(semantic)], prior, products)
            for i in range(EXPERTS)
        ]
        q1, k1, q2, k2, v = (torch.stack(tensors, dim=1) for tensors in zip(*each, strict=True))
        scale, alpha = self.distortion.scale, self.alpha.expand(EXPERTS)
        features = differential_attention(q1, k1, q2, k2, v, alpha, scale, backend=backend)
        # The operation never forms its maps.
        rows = slice(None) if whole_maps else slice(1)
        maps = difference_of_softmaxes(q1[:, :, rows], k1, q2[:, :, rows], k2, alpha, scale)
        return features, maps if whole_maps else maps[:, :, 0]

    def _dense_expert(
        self, i: int, semantic: Tensor, prior: Prior, products: Tensor
    ) -> tuple[Tensor, ...]:
        """One expert's Q_D, K_dis, Q, K and V, each [B, N, d], from its semantic tokens."""
        spread = self.spread.to(semantic)
        feature = self.features.dense(products, spread, i).expand_as(semantic)
        keys = self.keys.dense(prior, feature[:, 0], spread)
        pair = (feature, semantic) if self.distortion_first else (semantic, feature)
        return (
            self.distortion.query.of(i, feature),
            self.distortion.key.of(i, keys),
            self.semantic.query.of(i, semantic),
            self.semantic.key.of(i, semantic),
            self.value.of(i, torch.cat(pair, dim=-1)),
        )

    def _value(self, semantic: Tensor, distortion: Tensor) -> Tensor:
        """W_V cat(F, F_D) without its bias, [B, E, d]."""
        pair = (distortion, semantic) if self.distortion_first else (semantic, distortion)
        return self.value.project(torch.cat(pair, dim=-1))


class ExpertWeighting(nn.Module):
    """Eq. 3-4: F_Group = (1 - lambda) FFN(LN(F_distortion)), weights = WG(feature group)."""

    def __init__(self, config: DRExpertsConfig) -> None:
        super().__init__()
        width = config.encoder.width
        self.refined = config.group_features == "refined"
        self.norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.lambda_ = nn.Parameter(torch.full((width,), config.lambda_init))
        self.generator = _weight_generator(3 * width)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Weights [...] from F_distortion [..., d] and F, which broadcasts to it."""
        group = (1 - self.lambda_) * self.ffn(self.norm(features))
        tokens = tokens.expand_as(group)
        own, bridge = (group, group - tokens) if self.refined else (features, tokens - group)
        parts = (own, tokens, bridge)
        weights: Tensor = self.generator(torch.cat(parts, dim=-1))[..., 0]
        return weights


def _weight_generator(inputs: int) -> nn.Sequential:
    """Eq. 4's MLP with PReLU, in the released code's hidden widths for every encoder."""
    layers: list[nn.Module] = []
    for outputs in (384, 32, 16):
        layers += [nn.Linear(inputs, outputs), nn.PReLU()]
        inputs = outputs
    return nn.Sequential(*layers, nn.Linear(inputs, 1))
