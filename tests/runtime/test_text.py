from lepto.runtime import TextClassifier


def test_x(tiny_text_package, tiny_tensor_package):
    c = TextClassifier(tiny_text_package)
    print(c("cancel please"), c.predict(["refund", "order"], top=3))
    print(sorted(p.name for p in tiny_text_package.parent.iterdir()))
