//! Who holds which page of a cache, and which pages hold the keys of which tokens.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The number of a page.
pub(crate) type Page = u32;

/// Names the content of a page: its tokens and all those before them.
pub(crate) type Content = u64;

/// What the first page of a sequence follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Parent {
    /// Nothing: the first tokens, computed with these adapters or none, and rotated in this way.
    Start { adapter: Option<usize>, regime: usize },
    /// The page of this content.
    Page(Content),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    parent: Parent,
    tokens: Box<[u32]>,
}

/// Pages with the number of sequences that hold each.
///
/// A page whose tokens are known stays findable when nobody holds it any more, until it is needed for others: those
/// that were released first go first.
#[derive(Debug)]
pub(crate) struct PagePool {
    holders: Vec<u32>,
    /// Without content, the lowest first: neighbours are read in one go.
    free: BTreeSet<Page>,
    /// With content and without holders, by the time of their release.
    idle: BTreeMap<u64, Page>,
    released: Vec<u64>,
    contents: Vec<Option<(Content, Key)>>,
    index: HashMap<Key, Page>,
    clock: u64,
}

impl PagePool {
    pub(crate) fn new(pages: usize) -> Self {
        Self {
            holders: vec![0; pages],
            free: (0..pages as Page).collect(),
            idle: BTreeMap::new(),
            released: vec![0; pages],
            contents: vec![None; pages],
            index: HashMap::new(),
            clock: 0,
        }
    }

    /// Pages in all.
    pub(crate) fn len(&self) -> usize {
        self.holders.len()
    }

    /// Pages that can be taken.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// So many pages, each held once; `None`, and nothing changed, where there are not enough.
    pub(crate) fn take(&mut self, count: usize) -> Option<Vec<Page>> {
        if count > self.available() {
            return None;
        }
        let take_one = |_| {
            let page = self.free.pop_first().or_else(|| {
                let (_, page) = self.idle.pop_first()?;
                if let Some((_, key)) = self.contents[page as usize].take() {
                    self.index.remove(&key);
                }
                Some(page)
            })?;
            self.holders[page as usize] = 1;
            Some(page)
        };
        (0..count).map(take_one).collect()
    }

    /// One more holder of a page.
    pub(crate) fn hold(&mut self, page: Page) {
        if self.holders[page as usize] == 0 {
            self.idle.remove(&self.released[page as usize]);
            self.free.remove(&page);
        }
        self.holders[page as usize] += 1;
    }

    /// One holder less.
    pub(crate) fn release(&mut self, page: Page) {
        let at = page as usize;
        self.holders[at] -= 1;
        if self.holders[at] > 0 {
            return;
        }
        if self.contents[at].is_none() {
            self.free.insert(page);
            return;
        }
        let now = self.tick();
        self.released[at] = now;
        self.idle.insert(now, page);
    }

    /// Makes a full page findable. Gives its content, or that of the page which has the same tokens already.
    pub(crate) fn register(&mut self, page: Page, parent: Parent, tokens: &[u32]) -> Content {
        if let Some((content, _)) = &self.contents[page as usize] {
            return *content;
        }
        let key = Key { parent, tokens: tokens.into() };
        if let Some(&other) = self.index.get(&key)
            && let Some((content, _)) = &self.contents[other as usize]
        {
            return *content;
        }
        let content = self.tick();
        self.index.insert(key.clone(), page);
        self.contents[page as usize] = Some((content, key));
        content
    }

    /// The page with these tokens behind that parent.
    pub(crate) fn find(&self, parent: Parent, tokens: &[u32]) -> Option<(Page, Content)> {
        let page = *self.index.get(&Key { parent, tokens: tokens.into() })?;
        let (content, _) = self.contents[page as usize].as_ref()?;
        Some((page, *content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Parent = Parent::Start { adapter: Some(0), regime: 0 };

    #[test]
    fn pages_are_handed_out_in_order_and_come_back() {
        let mut pool = PagePool::new(4);
        assert_eq!(pool.take(3).unwrap(), [0, 1, 2]);
        assert_eq!(pool.take(2), None);
        assert_eq!(pool.available(), 1);
        pool.hold(1);
        pool.release(1);
        assert_eq!(pool.available(), 1, "somebody holds it");
        pool.release(1);
        assert_eq!(pool.take(2).unwrap(), [1, 3]);
    }

    #[test]
    fn known_tokens_are_found_until_the_page_is_needed() {
        let mut pool = PagePool::new(3);
        let pages = pool.take(2).unwrap();
        let first = pool.register(pages[0], START, &[1, 2]);
        pool.register(pages[1], Parent::Page(first), &[3, 4]);
        assert_eq!(pool.find(START, &[1, 2]), Some((pages[0], first)));
        assert_eq!(pool.find(Parent::Start { adapter: None, regime: 0 }, &[1, 2]), None);
        assert_eq!(pool.find(Parent::Start { adapter: Some(0), regime: 1 }, &[1, 2]), None);
        assert_eq!(pool.find(START, &[3, 4]), None, "behind other tokens");
        pages.iter().for_each(|page| pool.release(*page));
        assert_eq!(pool.available(), 3);
        pool.hold(pages[0]);
        assert_eq!(pool.take(2).unwrap(), [2, pages[1]]);
        assert_eq!(pool.find(Parent::Page(first), &[3, 4]), None);
        assert!(pool.find(START, &[1, 2]).is_some());
    }

    #[test]
    fn the_same_tokens_twice_are_one_content() {
        let mut pool = PagePool::new(2);
        let pages = pool.take(2).unwrap();
        let first = pool.register(pages[0], START, &[7]);
        assert_eq!(pool.register(pages[1], START, &[7]), first);
        pool.release(pages[1]);
        assert_eq!(pool.available(), 1);
        assert_eq!(pool.find(START, &[7]), Some((pages[0], first)));
    }
}
