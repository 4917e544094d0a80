"""Floor 2, finding: three towers, fusion, the index, the retriever."""
