"""Storyboards of YouTube: the sheets of small frames that a player shows over its progress bar."""
