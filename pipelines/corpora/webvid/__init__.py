"""WebVid: clips with captions."""
