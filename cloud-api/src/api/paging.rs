//! Lists come in pages: `limit` and `after` in, `next` out. `after` is opaque to callers.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::error::{Problem, Result};

/// The most items of one page.
pub const MAX: u32 = 500;

/// Which page is asked for. A route with further parameters repeats the two fields in its own type and calls
/// [`Paging::new`], since a flattened struct cannot read numbers from a query string.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Paging {
    /// Items of a page, 1 to 500; 100 by default.
    pub limit: Option<u32>,
    /// `next` of the page before.
    pub after: Option<String>,
}

impl Paging {
    /// From parameters read otherwise.
    #[must_use]
    pub fn new(limit: Option<u32>, after: Option<String>) -> Self {
        Self { limit, after }
    }

    /// Items asked for.
    ///
    /// # Errors
    /// 400 `limit_invalid`.
    pub fn limit(&self) -> Result<usize> {
        match self.limit.unwrap_or(100) {
            n @ 1..=MAX => Ok(n as usize),
            n => Err(Problem::bad_request("limit_invalid", format!("limit is {n}; it is 1 to {MAX}."))),
        }
    }

    /// The `LIMIT` of the query: one more than asked for, to see whether there is a next page.
    ///
    /// # Errors
    /// 400 `limit_invalid`.
    pub fn sql_limit(&self) -> Result<i64> {
        Ok(i64::try_from(self.limit()?).unwrap_or(i64::from(MAX)) + 1)
    }

    /// The key to begin after, or `from` on the first page.
    ///
    /// # Errors
    /// 400 `after_invalid`.
    pub fn after<K: std::str::FromStr>(&self, from: K) -> Result<K> {
        match &self.after {
            None => Ok(from),
            Some(text) => text.parse().map_err(|_| {
                Problem::bad_request("after_invalid", "after is not what `next` of the page before said.")
            }),
        }
    }
}

/// One page of a list.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// `after` of the next page; null when this is the last.
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// Makes a page of rows fetched with [`Paging::sql_limit`]; `key` names a row for `after`.
    ///
    /// # Errors
    /// 400 `limit_invalid`.
    pub fn of<R>(
        paging: &Paging,
        mut rows: Vec<R>,
        key: impl Fn(&R) -> String,
        view: impl FnMut(R) -> T,
    ) -> Result<Self> {
        let limit = paging.limit()?;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = if more { rows.last().map(key) } else { None };
        Ok(Self { items: rows.into_iter().map(view).collect(), next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_page_has_no_next() {
        let paging = Paging::new(Some(2), None);
        assert_eq!(paging.sql_limit().unwrap(), 3);
        let page = Page::of(&paging, vec![1, 2, 3], ToString::to_string, |n| n).unwrap();
        assert_eq!((page.items, page.next.as_deref()), (vec![1, 2], Some("2")));
        let page = Page::of(&paging, vec![3, 4], ToString::to_string, |n| n).unwrap();
        assert_eq!((page.items, page.next), (vec![3, 4], None));
    }

    #[test]
    fn odd_pages_are_refused() {
        assert!(Paging::new(Some(0), None).limit().is_err());
        assert!(Paging::new(Some(501), None).limit().is_err());
        assert!(Paging::new(None, Some("x".to_owned())).after(0_i64).is_err());
    }
}
