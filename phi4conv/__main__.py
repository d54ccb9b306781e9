"""Runs phi4conv as a module: python -m phi4conv convert MODEL_DIR OUT.gguf."""

from phi4conv.cli import main

if __name__ == "__main__":
    main()
