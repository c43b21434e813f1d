"""File names of pictures, as Load References reads them; apart from the reader, which imports torch."""

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif"
}  # fmt: skip
