"""Models that start from nothing: their first weights and their prior."""

import torch

from drexperts.training.from_nothing import frequency_filters, random_crops


def test_frequency_filters_are_orthogonal_and_blind_to_nothing():
    filters = frequency_filters(4, 48)
    luma = filters[:16].flatten(1)
    gram = luma @ luma.T
    torch.testing.assert_close(gram, gram.diagonal().diag(), atol=1e-5, rtol=0)
    assert torch.linalg.matrix_rank(filters.flatten(1)) == 48


def test_crops_are_pieces_of_their_own_image_some_mirrored():
    rows, columns = torch.arange(6)[:, None], torch.arange(7)
    image = (10 * rows + columns).to(torch.uint8).expand(40, 3, 6, 7)
    crops = random_crops(image, 4, torch.Generator().manual_seed(0)).int()
    steps = crops.diff(dim=-1)
    mirrored = steps[:, 0, 0, 0] == -1
    assert 0 < mirrored.sum() < 40
    assert torch.equal(steps.abs(), torch.ones_like(steps))
    assert torch.equal(crops.diff(dim=-2), torch.full((40, 3, 3, 4), 10, dtype=torch.int32))
    corners = torch.where(mirrored, crops[:, 0, 0, -1], crops[:, 0, 0, 0])
    assert set(corners.tolist()) == {10 * y + x for y in range(3) for x in range(4)}
