"""The stages of a main job, and the process that runs each."""
