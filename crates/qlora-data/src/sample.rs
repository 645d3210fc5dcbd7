/// A row as the model sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Token ids.
    pub ids: Vec<u32>,
    /// `weights[i]`: the weight of the loss on predicting `ids[i]` from what precedes it. The first is 0:
    /// nothing precedes it.
    pub weights: Vec<f32>,
    /// The line of the file, from 1; 0 when the sample is from no file.
    pub line: usize,
}

impl Sample {
    /// A sample from ids and weights.
    ///
    /// # Panics
    /// When there are not as many weights as ids.
    #[must_use]
    pub fn new(ids: Vec<u32>, mut weights: Vec<f32>, line: usize) -> Self {
        assert_eq!(ids.len(), weights.len(), "a weight for every id");
        if let Some(first) = weights.first_mut() {
            *first = 0.0;
        }
        Self { ids, weights, line }
    }

    /// Number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Number of tokens whose weight is not 0.
    #[must_use]
    pub fn trained_tokens(&self) -> usize {
        self.weights.iter().filter(|&&weight| weight != 0.0).count()
    }
}
