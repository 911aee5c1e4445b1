"""The W-Net: two U-Nets, an encoder to K classes and a decoder back to the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from spwnet.devices import memory_format

if TYPE_CHECKING:
    from collections.abc import Sequence

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
LEAST_DEVIATION = 1e-4
SHARPNESS = 2.0
"""Factor of the features where classes are given: normalised, they could not be sure of any."""
MOST_DEVIATIONS = 5.0
"""Evidence further from its mean, in standard deviations, counts as so far."""


class Block(nn.Module):
    """Two 3×3 convolutions, each followed by batch normalisation and ReLU.

    Parameters
    ----------
    c_in, c_out : int
        Channels.
    separable : bool
        Depthwise 3×3 then pointwise 1×1 instead of plain 3×3 convolutions.
    ndim : int
        Number of spatial dimensions, 2 or 3.
    """

    def __init__(self, c_in: int, c_out: int, *, separable: bool, ndim: int) -> None:
        super().__init__()
        conv, norm = CONVOLUTION[ndim], NORM[ndim]

        def convolution(a: int, b: int) -> nn.Module:
            if not separable:
                return conv(a, b, 3, padding=1)
            return nn.Sequential(conv(a, a, 3, padding=1, groups=a), conv(a, b, 1))

        self.conv1, self.norm1 = convolution(c_in, c_out), norm(c_out)
        self.conv2, self.norm2 = convolution(c_out, c_out), norm(c_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, c_in, *spatial) to (B, c_out, *spatial)."""
        x = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(x)))


class UNet(nn.Module):
    """U-Net with depthwise-separable inner blocks [1]_.

    Parameters
    ----------
    c_in, c_out : int
        Channels of input and output.
    ch_mul : int
        Width of the first block; it doubles at each level.
    n_blocks : int
        Number of poolings.
    ndim : int
        Number of spatial dimensions, 2 or 3.

    References
    ----------
    .. [1] X. Xia, B. Kulis, W-Net: A deep model for fully unsupervised image segmentation,
       arXiv 1711.08506, 2017.
    """

    def __init__(self, c_in: int, c_out: int, ch_mul: int, n_blocks: int, ndim: int = 2) -> None:
        super().__init__()
        widths = [ch_mul * 2**level for level in range(n_blocks + 1)]
        self.pool = POOL[ndim](2)
        self.down = nn.ModuleList(
            Block(a, b, separable=level > 0, ndim=ndim)
            for level, (a, b) in enumerate(zip([c_in, *widths], widths, strict=False))
        )
        self.up = nn.ModuleList(
            TRANSPOSED[ndim](2 * width, width, 3, stride=2, padding=1, output_padding=1)
            for width in reversed(widths[:-1])
        )
        self.merge = nn.ModuleList(
            Block(2 * width, width, separable=level > 0, ndim=ndim)
            for level, width in reversed(list(enumerate(widths[:-1])))
        )
        self.final = CONVOLUTION[ndim](ch_mul, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, c_in, *spatial) to (B, c_out, *spatial); each side a multiple of 2^n_blocks."""
        skips = []
        for block in self.down[:-1]:
            x = block(x)
            skips.append(x)
            x = self.pool(x)
        x = self.down[-1](x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        out: Tensor = self.final(x)
        return out


class WNet(nn.Module):
    """Encoder → softmax → decoder, for images of any size: padded inside, never cropped.

    Parameters
    ----------
    channels : int
        Channels C of the images.
    classes : int
        K.
    ch_mul, n_blocks : int
        As in `UNet`.
    evidence : int
        Channels E of hand-made evidence that the encoder takes beside the image; the decoder gives back the image.
    ndim : int
        As in `UNet`.
    final_norm : bool
        Batch normalisation without scale and offset on the encoder's output: bounded logits keep
        the similarity loss from collapsing onto a few classes [1]_.

    References
    ----------
    .. [1] A. Kanezaki, Unsupervised image segmentation by backpropagation, ICASSP 2018.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        ch_mul: int = 16,
        n_blocks: int = 4,
        *,
        evidence: int = 0,
        ndim: int = 2,
        final_norm: bool = False,
    ) -> None:
        super().__init__()
        self.evidence_mean: Tensor | None
        self.evidence_std: Tensor | None
        self.channels = channels
        self.multiple = 2**n_blocks
        shape = (1, evidence, *[1] * ndim)
        self.register_buffer("evidence_mean", torch.zeros(shape) if evidence else None)
        self.register_buffer("evidence_std", torch.ones(shape) if evidence else None)
        self.encoder = UNet(channels + evidence, classes, ch_mul, n_blocks, ndim)
        self.norm = NORM[ndim](classes, affine=False) if final_norm else nn.Identity()
        self.decoder = UNet(classes, channels, ch_mul, n_blocks, ndim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and reconstruction.

        Parameters
        ----------
        x : (B, C + E, *spatial) tensor

        Returns
        -------
        features : (B, K, *spatial) tensor
            Logits f of the K classes.
        reconstruction : (B, C, *spatial) tensor
            x̂, the decoder's output from softmax(f).
        """
        f = self.norm(self.encoder(self._taken_in(x)))
        reconstruction = self.decoder(functional.softmax(f.float(), dim=1))
        return self._given_out(f, x), self._given_out(reconstruction, x)

    def encode(self, x: Tensor) -> Tensor:
        """Return the features alone, (B, K, *spatial)."""
        return self._given_out(self.norm(self.encoder(self._taken_in(x))), x)

    def classify(self, x: Tensor) -> Tensor:
        """Return the probability of each class at each pixel, (B, K, *spatial), as sure as `SHARPNESS` makes it."""
        features = self.norm(self.encoder(self._taken_in(x)))
        # Over the last axis in memory: several times faster than across it.
        last = (SHARPNESS * features.float()).movedim(1, -1).softmax(-1)
        return self._given_out(last.movedim(-1, 1), x)

    @torch.no_grad()
    def scale_evidence(self, images: Sequence[Tensor]) -> None:
        """Scale the evidence by its mean and standard deviation over images (1, C + E, *spatial), which weigh alike."""
        if self.evidence_mean is None:
            return
        axes = tuple(range(2, images[0].ndim))
        means = torch.stack([image[:, self.channels :].mean(axes, keepdim=True) for image in images])
        squares = torch.stack([image[:, self.channels :].var(axes, keepdim=True) for image in images])
        mean = means.mean(0)
        self.evidence_mean = mean
        self.evidence_std = torch.sqrt((squares + (means - mean).square()).mean(0)).clamp(min=LEAST_DEVIATION)

    def _taken_in(self, x: Tensor) -> Tensor:
        """Scale the evidence, and repeat the last row and column until all sides divide."""
        sizes = x.shape[2:]
        whole = [-(-size // self.multiple) * self.multiple for size in sizes]
        if self.evidence_mean is None and list(sizes) == whole:
            return x
        # Everything in one place in memory: it is far larger than what comes after it.
        last = memory_format(len(sizes))
        form = last if x.is_contiguous(memory_format=last) else torch.contiguous_format
        y = torch.empty((*x.shape[:2], *whole), dtype=x.dtype, device=x.device, memory_format=form)
        inside = y[(slice(None), slice(None), *(slice(size) for size in sizes))].copy_(x)
        if self.evidence_mean is not None and self.evidence_std is not None:
            evidence = inside[:, self.channels :]
            evidence.sub_(self.evidence_mean).div_(self.evidence_std).clamp_(-MOST_DEVIATIONS, MOST_DEVIATIONS)
        for axis, (size, full) in enumerate(zip(sizes, whole, strict=True), start=2):
            if full > size:
                y.narrow(axis, size, full - size).copy_(y.narrow(axis, size - 1, 1))
        return y

    def _given_out(self, y: Tensor, like: Tensor) -> Tensor:
        """Crop to the size that came in, in float32."""
        return y.float()[(slice(None), slice(None), *(slice(size) for size in like.shape[2:]))]
