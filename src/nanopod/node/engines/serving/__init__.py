"""Our own model server: scikit-learn, XGBoost, LightGBM, ONNX, TorchScript, Hugging Face; by V1, V2 and OpenAI."""
