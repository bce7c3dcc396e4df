def render(data):
    return ""
