"""The weak side: picks, codes and sends frames, and always has an answer."""
