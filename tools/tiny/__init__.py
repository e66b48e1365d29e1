"""Training and examination of internvl2-tiny, the stand-in model that the package ships."""
