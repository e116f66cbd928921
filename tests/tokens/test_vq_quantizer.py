"""Nearest rows, by hand: four codes on a line."""

import torch

from calumma.tokens.vq.quantizer import Quantizer, nearest, squared_distances, straight_through

LINE = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0], [2.0, 0.0]])


def test_distances_are_squared_and_euclidean() -> None:
    assert squared_distances(torch.tensor([[1.0, 2.0]]), LINE).tolist() == [[5.0, 5.0, 13.0, 5.0]]


def test_the_nearest_code_is_taken_and_ties_go_to_the_lower() -> None:
    vectors = torch.tensor([[0.9, 0.0], [1.0, 3.0], [2.1, 0.0], [9.0, 9.0]])
    assert nearest(vectors, LINE).tolist() == [0, 0, 1, 2]


def test_codes_and_their_vectors_keep_the_places_of_the_cells() -> None:
    quantizer = Quantizer(4, 2)
    quantizer.codebook.data.copy_(LINE)
    latents = torch.tensor([[0.0, 4.1], [2.2, 0.3]]).view(1, 1, 2, 2).repeat(1, 2, 1, 1)
    latents[:, 1] = 0.0
    codes = quantizer.codes(latents)
    assert codes.tolist() == [[[0, 2], [1, 0]]]
    assert quantizer.vectors(codes)[0, 0].tolist() == [[0.0, 4.0], [2.0, 0.0]]


def test_gradients_pass_straight_through() -> None:
    latents = torch.tensor([1.0, 2.0], requires_grad=True)
    through = straight_through(latents, torch.tensor([5.0, 7.0]))
    assert through.tolist() == [5.0, 7.0]
    through.backward(torch.tensor([3.0, 4.0]))
    assert latents.grad is not None and latents.grad.tolist() == [3.0, 4.0]
