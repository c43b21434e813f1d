"""Close-up first, whole picture after: the schedule, the stages and the composite (DreamMix, sec. 3.2)."""
