//! What asking a teacher took.

use std::fmt;

use serde::Serialize;

/// Prices of a model, in any one currency.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Prices {
    /// Of a million tokens sent.
    pub prompt: f64,
    /// Of a million tokens received.
    pub completion: f64,
}

/// Requests and tokens. Answers that came from the cache cost nothing and are counted apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Requests sent, repeated ones included.
    pub requests: u64,
    /// Requests that repeat one that failed.
    pub retries: u64,
    /// Answers that were there without asking: of an earlier run, or to the same question asked twice.
    pub cached: u64,
    /// Tokens sent, as the server counts them.
    pub prompt_tokens: u64,
    /// Tokens received, as the server counts them.
    pub completion_tokens: u64,
    /// Requests that may be charged for though the server did not say how many tokens they took: late, broken, or
    /// answered without the count.
    pub unmetered: u64,
}

impl Usage {
    pub(super) fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.retries += other.retries;
        self.cached += other.cached;
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.unmetered += other.unmetered;
    }

    /// What it cost at these prices.
    pub fn cost(&self, prices: Option<Prices>) -> Cost {
        let Some(prices) = prices else {
            return if self.requests == 0 { Cost::Exactly(0.0) } else { Cost::Unknown };
        };
        let tokens = |count: u64, price: f64| count as f64 / 1e6 * price;
        let sum =
            tokens(self.prompt_tokens, prices.prompt) + tokens(self.completion_tokens, prices.completion);
        if self.unmetered == 0 { Cost::Exactly(sum) } else { Cost::AtLeast(sum) }
    }
}

/// What requests cost, in the currency of the prices.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cost {
    /// Every token was counted by the server.
    Exactly(f64),
    /// Some requests were not.
    AtLeast(f64),
    /// Nobody said what a token costs.
    Unknown,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cost::Exactly(sum) => write!(f, "{sum:.4}"),
            Cost::AtLeast(sum) => write!(f, "at least {sum:.4}"),
            Cost::Unknown => f.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_never_guessed() {
        let prices = Some(Prices { prompt: 0.5, completion: 1.5 });
        let metered =
            Usage { requests: 3, prompt_tokens: 2_000_000, completion_tokens: 1_000_000, ..Usage::default() };
        assert_eq!(metered.cost(prices), Cost::Exactly(2.5));
        assert_eq!(Usage { unmetered: 1, ..metered }.cost(prices).to_string(), "at least 2.5000");
        assert_eq!(metered.cost(None).to_string(), "unknown");
        assert_eq!(Usage { cached: 9, ..Usage::default() }.cost(None), Cost::Exactly(0.0));
    }
}
