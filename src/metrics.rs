//! Counters and histograms that operators scrape.
