"""Instruction data: dialogues of text, images and videos, in the forms in which they are distributed."""
