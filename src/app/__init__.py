import gc

# How many new objects may be there before some are looked through for garbage. The default, 700, is less than what a
# few requests under way hold, and takes a tenth of the start.
gc.set_threshold(20_000)
