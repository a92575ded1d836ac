"""YT-Storyboard: the frames of storyboards and subtitles, in the order of time."""
