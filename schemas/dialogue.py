"""Dialogues: the system messages of the paper, for tuning data and for the server.

A dialogue is a sample whose segments all have a role. A turn is a run of segments of one role, texts and images in the
order in which they are read; at most one `system` turn comes first, then `user` and `assistant` take turns.

Source of the messages: the released evaluation and inference code of Emu (github.com/baaivision/Emu, Emu1).
"""

IMAGE_SYSTEM_MESSAGE = (
    "You will be presented with an image: [IMG]ImageContent[/IMG]. You will be able to see the image "
    "after I provide it to you. Please answer my questions based on the given image."
)
VIDEO_SYSTEM_MESSAGE = (
    "You are a helpful assistant and you will be presented with a video consisting of multiple chronological "
    "images: [IMG]ImageContent[/IMG]. You will be able to see the video after I provide it to you. Please "
    "answer my questions based on the given video."
)


def system_message(num_images: int, num_videos: int) -> str | None:
    """The paper's system message for what a dialogue shows; None where the paper uses none.

    A dialogue about one image or one video has a message of its own. The released example with several images has an
    empty one, and so has a dialogue of text alone, for which nothing was released.
    """
    if (num_images, num_videos) == (1, 0):
        return IMAGE_SYSTEM_MESSAGE
    if (num_images, num_videos) == (0, 1):
        return VIDEO_SYSTEM_MESSAGE
    return None
