"""imagen: an Imagen-style text-to-image cascade. The library; stages are beside this folder."""

__version__ = "0.1.0"
