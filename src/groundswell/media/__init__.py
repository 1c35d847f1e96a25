"""Video: probing, splitting at key frames, the ladder, fMP4 and HLS."""
