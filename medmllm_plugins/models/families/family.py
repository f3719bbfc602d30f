"""The base classes of all architectures: the names of their stages and the layout of what these return.

Patches are numbered as :func:`medmllm_plugins.attribution.patches.to_patches` cuts the input of one document: flat
patches in their order, tiles one after the other, each row by row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, Union

import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image
from torch import Tensor, nn

from medmllm_plugins.errors import ModelError

if TYPE_CHECKING:
    from medmllm_plugins.data.readers.volumes import Volume

IntArray: TypeAlias = npt.NDArray[np.int64]
FloatArray: TypeAlias = npt.NDArray[np.float64]
Inputs: TypeAlias = Mapping[str, Tensor]
ImageStage: TypeAlias = Literal["vision", "connector"]
VisualInput: TypeAlias = Union[Image, Sequence[Image], "Volume"]
"""What a question is about: an image, several images, or a volume."""


@dataclass(frozen=True, slots=True)
class VolumeWindow:
    """The box of a volume that a model is shown, and the intensities that become black and white."""

    box: tuple[slice, slice, slice]
    low: float
    high: float


class Family:
    """An architecture: the names of its stages, and the layout of its prompts, patches and tokens.

    A family has no state: every method is given the transformers model, and ``inputs``, the model's input as its
    processor makes it. The defaults describe a vision transformer that returns a row of patches for each image tile,
    (tiles, patches, d), behind a connector that keeps the patches or merges square blocks of them. A new architecture
    sets the class attributes and overrides the methods in which it differs.

    Attributes:
        model_type: the ``model_type`` of its ``config.json``.
        vision_blocks: name of the list of the vision tower's blocks, below the transformers model.
        vision_norm: name of the norm after the last of them; ``None`` where there is none.
        connector: name of the module whose output replaces the embeddings of the image tokens.
        before_connector: names of modules between the end of the tower and that module, which belong to the connector.
        llm_blocks: name of the list of the LLM's blocks.
        llm_norm: name of the norm after the last of them.
        flat: whether the tower returns the patches of a batch in one list, (patches, d), without an axis for tiles, or
            would if :meth:`row_mask` were applied.
        first_position: position of a prompt's first token.
        answer_token_type: ``token_type_ids`` of the tokens of an answer, where the model's input has them.
        needs: packages that its processor needs and this package does not install.
    """

    title: ClassVar[str]
    model_type: ClassVar[str]
    vision_blocks: ClassVar[str] = "model.vision_tower.encoder.layers"
    vision_norm: ClassVar[str | None] = "model.vision_tower.post_layernorm"
    connector: ClassVar[str] = "model.multi_modal_projector"
    before_connector: ClassVar[tuple[str, ...]] = ()
    embed: ClassVar[str] = "model.language_model.embed_tokens"
    llm_blocks: ClassVar[str] = "model.language_model.layers"
    llm_norm: ClassVar[str] = "model.language_model.norm"
    head: ClassVar[str] = "lm_head"
    flat: ClassVar[bool] = False
    first_position: ClassVar[int] = 0
    answer_token_type: ClassVar[int] = 0
    needs: ClassVar[tuple[str, ...]] = ()

    @property
    def tower(self) -> str:
        """Name of the whole vision tower: the first two parts of :attr:`vision_blocks`."""
        return ".".join(self.vision_blocks.split(".")[:2])

    # -- the prompt

    def forward_prompt(self, model: Any, inputs: Inputs, **options: Any) -> tuple[Any, Tensor]:
        """Run a batch of prompts with their images through the model.

        ``inputs`` hold ``input_ids`` and ``attention_mask``, (B, L), padded on the left, and ``pixel_values``;
        ``options`` are further arguments of the model's ``forward``.

        Returns:
            The model's output, and the position of each row's next token, (B,), int64.
        """
        # Positions count from each row's first token, so that padding does not shift them.
        positions = (inputs["attention_mask"].long().cumsum(-1) - 1).clamp(min=0) + self.first_position
        return model(**inputs, position_ids=positions, **options), positions[:, -1] + 1

    def image_positions(self, model: Any, inputs: Inputs) -> Tensor:
        """Return which tokens of the prompts are replaced by image features, (B, L), bool."""
        return inputs["input_ids"] == int(model.config.image_token_id)

    # -- rows of a batch

    def to_rows(self, layer: str, output: Tensor) -> Tensor:
        """View the output of a layer of the tower or connector with the feature axis last, differentiably.

        A tower of feature maps, (B, d, H, W), returns ``output.movedim(1, -1)``; :meth:`from_rows` is the inverse.
        """
        return output

    def from_rows(self, layer: str, rows: Tensor) -> Tensor:
        """Undo :meth:`to_rows`."""
        return rows

    def class_tokens(self, model: Any) -> int:
        """Return how many tokens of the tower's output precede the patches of each tile."""
        names = (name for name, _ in stage_module(model, self.tower).named_parameters())
        return int(any(name.endswith(("class_embedding", "cls_token")) for name in names))

    def vision_blocks_beside(self, model: Any) -> tuple[int, ...]:
        """Return the numbers of the vision blocks that connectors read beside the end of the tower; none by default."""
        return ()

    def row_mask(self, model: Any, stage: ImageStage, inputs: Inputs) -> Tensor | None:
        """Return which rows of a stage's output hold a part of an image, where images are padded to one size.

        Returns:
            bool, of the shape of what :meth:`to_rows` returns without its last axis; ``None``, the default, where all
            rows do. The rows that hold a part, in one list, are then those that :meth:`rows_per_document` counts.
        """
        return None

    def rows_per_document(self, model: Any, stage: ImageStage, inputs: Inputs) -> list[int]:
        """Return how many entries of a stage's first output axis belong to each of B documents.

        These are tiles, or patches and tokens where the family is flat.
        """
        each = self.tokens_per_tile(model)
        return [count // each for count in self.image_positions(model, inputs).sum(1).tolist()]

    def pixels_by_document(self, model: Any, inputs: Inputs) -> list[Tensor]:
        """Return the pixel values of each of B documents, without what a batch of several sizes is padded with."""
        pixels = inputs["pixel_values"]
        if pixels.dim() == 5:  # tiles by image, padded with zeros to the same number
            pixels = pixels.flatten(0, 1)
            pixels = pixels[(pixels != 0).flatten(1).any(1)]
        return list(torch.split(pixels, self.rows_per_document(model, "vision", inputs)))

    def tokens_per_tile(self, model: Any) -> int:
        """Return how many image tokens a tile gets in the prompt."""
        patches = self.patches_per_tile(model)
        return patches // self.merge_side(model, patches) ** 2

    def patches_per_tile(self, model: Any) -> int:
        """Return how many patches a tile is cut into."""
        side = model.config.vision_config.image_size
        return (int(side[0] if isinstance(side, list | tuple) else side) // self.patch_side(model)) ** 2

    # -- patches of one document

    def patch_side(self, model: Any) -> int:
        """Return the side of a patch in pixels of ``pixel_values``."""
        side = model.config.vision_config.patch_size
        return int(side[0] if isinstance(side, list | tuple) else side)

    def merge_side(self, model: Any, patches: int) -> int:
        """Return the side of the block of a tile's ``patches`` that the connector merges into one token, in patches."""
        return 1

    def patches_of_tiles(self, model: Any, inputs: Inputs) -> IntArray:
        """Return the numbers of the patches of each tile that the tower keeps, (tiles, patches), for one document."""
        pixels, side = inputs["pixel_values"], self.patch_side(model)
        each = (pixels.shape[-2] // side) * (pixels.shape[-1] // side)
        return np.arange(math.prod(pixels.shape[:-3]) * each).reshape(-1, each)

    def vision_patches(self, model: Any, inputs: Inputs, layer: str) -> IntArray:
        """Return the patches that each row of a vision layer comes from, for one document; layers may differ in scale.

        Returns:
            (rows, k), int64: numbers of patches, -1 for none, as in the row of a class token.
        """
        return self._tower_rows(model, inputs).reshape(-1, 1)

    def connector_patches(self, model: Any, inputs: Inputs) -> IntArray:
        """Return the patches that each row of the connector's output comes from, (rows, k), for one document.

        Raises:
            ModelError: the rows have no position in the image.
        """
        rows = self.connector_rows(model, self._tower_rows(model, inputs))
        return self.merge_blocks(rows, self.merge_side(model, rows.shape[1]))

    def connector_rows(self, model: Any, rows: IntArray) -> IntArray:
        """Select the rows of each tile that the connector reads, from (tiles, rows): all but class tokens."""
        return rows[:, self.class_tokens(model) :]

    def merge_blocks(self, tiles: IntArray, side: int) -> IntArray:
        """Merge the patches of square tiles, (tiles, patches), in square blocks of ``side`` patches a side.

        Returns:
            (tiles * patches / side², side²), the patches of each block.

        Raises:
            ModelError: the tiles are no squares that divide into blocks.
        """
        edge = math.isqrt(tiles.shape[1])
        if side == 1:
            return tiles.reshape(-1, 1)
        if edge**2 != tiles.shape[1] or edge % side:
            raise ModelError(
                f"{self.title}: expected square tiles whose patches divide into blocks of {side} x {side}, got "
                f"{tiles.shape[1]} patches a tile."
            )
        blocks = tiles.reshape(len(tiles), edge // side, side, edge // side, side)
        return blocks.transpose(0, 1, 3, 2, 4).reshape(-1, side**2)

    def prompt_order(self, model: Any, inputs: Inputs, rows: IntArray) -> IntArray:
        """Put the connector's rows, (rows, k), into the order of the image tokens in the prompt."""
        return rows

    def token_patches(self, model: Any, inputs: Inputs) -> IntArray:
        """Return the patches that each of the L tokens of one document's prompt comes from, (L, k); -1 for text.

        Raises:
            ModelError: the prompt has another number of image tokens than the connector has rows.
        """
        connector = self.prompt_order(model, inputs, self.connector_patches(model, inputs))
        positions = np.flatnonzero(self.image_positions(model, inputs)[0].cpu().numpy())
        if len(positions) != len(connector):
            raise ModelError(
                f"{self.title}: expected as many image tokens in the prompt as the connector has rows, "
                f"{len(connector)}, got {len(positions)}."
            )
        rows = np.full((inputs["input_ids"].shape[1], connector.shape[1]), -1)
        rows[positions] = connector
        return rows

    def grid_key(self, inputs: Inputs) -> tuple[int, ...]:
        """Return what documents with prompts of one length need in common for their tokens to show the same places."""
        return ()

    def patch_boxes(self, model: Any, inputs: Inputs, shown: VisualInput) -> tuple[IntArray, FloatArray] | None:
        """Return where patches lie on the pictures, where the family computes it itself.

        Returns:
            The picture of each patch, (n,), and its box (left, top, right, bottom) as fractions of that picture, (n,
            4). ``None``, the default: the boxes are measured, by showing the processor pictures of known colours
            (:mod:`medmllm_plugins.attribution.patch_measurement`).
        """
        return None

    # -- what maps are drawn on, and where

    def pictures(self, shown: VisualInput) -> list[Image]:
        """Return the pictures on which a document's maps are drawn.

        Raises:
            ModelError: a volume is shown to a family that takes images.
        """
        several = list(shown) if isinstance(shown, Sequence) else [shown]
        for item in several:
            if not isinstance(item, Image):
                raise ModelError(f"{self.title}: expected images, got {type(item).__name__}.")
        return [item for item in several if isinstance(item, Image)]

    def volume_window(self, volume: Volume) -> VolumeWindow:
        """Return the part of a volume, and the range of its intensities, that the model is shown.

        Raises:
            ModelError: the family takes images.
        """
        raise ModelError(f"{self.title}: expected images, got a volume; this model takes none.")

    def default_layers(self, vision: Sequence[str]) -> tuple[str, ...]:
        """Return the layers to explain by default; ``vision`` are the tower's blocks that the answer depends on."""
        return vision[-1], "connector"

    # -- what blocks of the LLM read beside the output of the block before

    def key_stores(self, model: Any) -> Mapping[int, str]:
        """Return the blocks of the LLM whose keys and values later blocks read in place of own ones; none by default.

        Returns:
            By number of the block, the name of its keys and values in the argument ``shared_kv_states`` of blocks.
        """
        return {}

    def blocks_with_keys(self, model: Any, blocks: int) -> int:
        """Return how many of the LLM's blocks, the first ones, make keys and values of their own; all by default."""
        return blocks

    def cache_layer(self, model: Any, block: int) -> int:
        """Return the number of the cache's layer that a block of the LLM attends to; its own by default."""
        return block

    def further_embeddings(self, model: Any) -> tuple[str, ...]:
        """Return the names of further modules that look tokens up, beside :attr:`embed`; none by default."""
        return ()

    def reads_embeddings(self, model: Any) -> bool:
        """Return whether all blocks of the LLM read the LLM's input, too; no by default."""
        return False

    # -- weights

    def neutral_norm_weight(self, module: nn.Module) -> float:
        """Return the value at which a norm's weight leaves its input's scale as it is."""
        return 1.0

    # -- for tests

    @classmethod
    def write_tiny_checkpoint(cls, folder: Path) -> None:
        """Write a checkpoint of this architecture with random weights and a few layers, a few MB in all.

        The checks of :mod:`medmllm_plugins.testing` load it where no other checkpoint is named. Parts for it are in
        :mod:`medmllm_plugins.testing.tiny_checkpoints`.

        Args:
            folder: an empty folder.

        Raises:
            ModelError: the family has none; this is the default.
        """
        raise ModelError(
            f"{cls.__name__}: expected a checkpoint to load, got none. Name one (checkpoint=FOLDER in "
            "parametrize_with_checks, --pretrained FOLDER in `medmllm check-plugin NAME`), or override "
            "write_tiny_checkpoint."
        )

    def _tower_rows(self, model: Any, inputs: Inputs) -> IntArray:
        """Return the patches of each row of the tower's output, (tiles, class tokens and patches)."""
        return np.pad(self.patches_of_tiles(model, inputs), ((0, 0), (self.class_tokens(model), 0)), constant_values=-1)


class FlatFamily(Family):
    """A tower that returns the patches of a batch in one list, (patches, d), as many as each image's grid has.

    ``inputs["image_grid_thw"]`` holds frames, rows and columns of each image.
    """

    flat = True

    def class_tokens(self, model: Any) -> int:
        """Return 0."""
        return 0

    def patches_per_image(self, model: Any, inputs: Inputs) -> Tensor:
        """Return the number of patches of each image, (images,), int64."""
        return inputs["image_grid_thw"].prod(-1)

    def merge_sides(self, model: Any, inputs: Inputs) -> Tensor:
        """Return the side of the block of patches that becomes one token, (images,), int64."""
        grids = inputs["image_grid_thw"]
        return torch.full_like(grids[:, 0], int(model.config.vision_config.spatial_merge_size))

    def grid_key(self, inputs: Inputs) -> tuple[int, ...]:
        """Return the grids of the images."""
        return tuple(inputs["image_grid_thw"].flatten().tolist()) if "image_grid_thw" in inputs else ()

    def rows_per_document(self, model: Any, stage: ImageStage, inputs: Inputs) -> list[int]:
        """Return how many patches or tokens belong to each of B documents."""
        patches = self.patches_per_image(model, inputs)
        tokens = patches // self.merge_sides(model, inputs) ** 2
        # Images come in the order of the documents, and each has as many tokens in its document's prompt.
        ends, wanted = tokens.cumsum(0), self.image_positions(model, inputs).sum(1).cumsum(0).to(tokens.device)
        owner = torch.searchsorted(wanted, ends)
        each = patches if stage == "vision" else tokens
        counts: list[int] = torch.zeros_like(wanted).index_add_(0, owner, each.to(wanted.dtype)).tolist()
        return counts

    def vision_patches(self, model: Any, inputs: Inputs, layer: str) -> IntArray:
        """Return the patch of each row, (rows, 1)."""
        return np.arange(len(inputs["pixel_values"]))[:, None]

    def connector_patches(self, model: Any, inputs: Inputs) -> IntArray:
        """Return the patches that each row of the connector's output comes from, (rows, k).

        The patches of a block are neighbours in the list; images may have blocks of different sizes.
        """
        vision = self.vision_patches(model, inputs, "vision")
        sides = self.merge_sides(model, inputs).tolist()
        images = np.split(vision, np.cumsum(self.patches_per_image(model, inputs).tolist())[:-1])
        widest = max(sides) ** 2
        return np.concatenate(
            [
                np.pad(image.reshape(-1, side**2), ((0, 0), (0, widest - side**2)), constant_values=-1)
                for image, side in zip(images, sides, strict=True)
            ]
        )


def select_rows(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Return the rows that hold a part of an image, (n, d), see :meth:`Family.row_mask`; all as they are without one.

    Raises:
        ModelError: there are other rows than the mask is for.
    """
    if mask is None:
        return rows
    return rows[_checked_mask(rows, mask)]


def replace_rows(rows: Tensor, mask: Tensor | None, chosen: Tensor) -> Tensor:
    """Put what became of the rows that :func:`select_rows` returned back among the others; differentiable.

    Raises:
        ModelError: there are other rows than the mask is for.
    """
    if mask is None:
        return chosen
    return rows.masked_scatter(_checked_mask(rows, mask)[..., None], chosen.to(rows.dtype))


def _checked_mask(rows: Tensor, mask: Tensor) -> Tensor:
    if rows.shape[:-1] != mask.shape:
        raise ModelError(
            f"Expected {tuple(mask.shape)} rows from the vision stage, by the batch's input, got "
            f"{tuple(rows.shape[:-1])}; this version of transformers lays it out differently."
        )
    return mask.to(rows.device)


def merge_grid(grid: IntArray, side: int) -> IntArray:
    """Merge a grid of patches, (rows, columns), in square blocks of ``side`` patches a side, row by row.

    Returns:
        (blocks, side²), the patches of each block; a remainder at the right and the bottom is left out.
    """
    down, across = grid.shape[0] // side, grid.shape[1] // side
    cut = grid[: down * side, : across * side].reshape(down, side, across, side)
    return cut.transpose(0, 2, 1, 3).reshape(-1, side**2)


def stage_module(model: nn.Module, name: str) -> nn.Module:
    """Return the module of that name.

    Raises:
        ModelError: the model has none, so that this version of transformers has another layout than the family.
    """
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ModelError(
            f"{type(model).__name__}: expected a module {name!r}, got none ({error}); this version of transformers "
            "lays the model out differently."
        ) from error
