def minimise(seed):
    return ""
