"""Emu under the names that users of Hugging Face call: `AutoConfig`, `AutoModel`, `AutoTokenizer`, `AutoProcessor`.

`import emu` registers the classes of this package with transformers as soon as transformers is imported; no code is
downloaded with a model. They open the model directories of this project and write the same directories.
"""
