"""Runs phi4conv from a bare clone: python cli.py convert MODEL_DIR OUT.gguf."""

from phi4conv.cli import main

if __name__ == "__main__":
    main()
