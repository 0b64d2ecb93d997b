"""Stages of a main job."""
