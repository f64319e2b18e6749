"""Seed pooling, the first step of HSP: learned seeds shared by all samples attend to each sample's rows."""
