"""Every target slot sees its whole source and nothing ahead of itself."""

from ernie_vilg.model.attention_mask import Direction, attention_mask, both_masks


def test_text_to_image_with_two_text_and_three_image_slots() -> None:
    mask = attention_mask(Direction.TEXT_TO_IMAGE, text_length=2, num_image_tokens=3)

    assert mask.int().tolist() == [  # key: text, text, image, image, image
        [1, 1, 0, 0, 0],  # first text slot
        [1, 1, 0, 0, 0],  # second text slot
        [1, 1, 1, 0, 0],  # first image slot
        [1, 1, 1, 1, 0],  # second image slot
        [1, 1, 1, 1, 1],  # third image slot
    ]


def test_image_to_text_with_two_text_and_three_image_slots() -> None:
    mask = attention_mask(Direction.IMAGE_TO_TEXT, text_length=2, num_image_tokens=3)

    assert mask.int().tolist() == [  # key: text, text, image, image, image
        [1, 0, 1, 1, 1],  # first text slot
        [1, 1, 1, 1, 1],  # second text slot
        [0, 0, 1, 1, 1],  # first image slot
        [0, 0, 1, 1, 1],  # second image slot
        [0, 0, 1, 1, 1],  # third image slot
    ]


def test_both_masks_are_ordered_by_direction() -> None:
    masks = both_masks(2, 3)

    for direction in Direction:
        assert masks[direction].equal(attention_mask(direction, 2, 3))
