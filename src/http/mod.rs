//! Everything that is asked for over plain HTTP and is no call: the pages that people open in a browser.
pub mod pages;
