//! Rectangles of a picture, and which parts of it have changed.

/// Pixels that a tile is wide and high. A character of a text mode touches one or two.
pub const TILE: usize = 16;

/// A rectangle of pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Area {
    /// From the left.
    pub x: usize,
    /// From the top.
    pub y: usize,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Area {
    /// All of a picture of this size.
    pub fn whole(width: usize, height: usize) -> Area {
        Area { x: 0, y: 0, width, height }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(self) -> bool {
        self.width == 0 || self.height == 0
    }

    fn right(self) -> usize {
        self.x.saturating_add(self.width)
    }

    fn bottom(self) -> usize {
        self.y.saturating_add(self.height)
    }

    /// What lies in both.
    pub fn and(self, other: Area) -> Area {
        let (x, y) = (self.x.max(other.x), self.y.max(other.y));
        let width = self.right().min(other.right()).saturating_sub(x);
        let height = self.bottom().min(other.bottom()).saturating_sub(y);
        if width == 0 || height == 0 { Area::default() } else { Area { x, y, width, height } }
    }

    /// The smallest one around both.
    pub fn around(self, other: Area) -> Area {
        if self.is_empty() {
            return other;
        }
        if other.is_empty() {
            return self;
        }
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        let (right, bottom) = (self.right().max(other.right()), self.bottom().max(other.bottom()));
        Area { x, y, width: right - x, height: bottom - y }
    }

    /// The tiles that lie wholly in it, those at the edges of `picture` as far as they go.
    pub fn whole_tiles(self, picture: Area) -> Area {
        let (x, y) = (self.x.next_multiple_of(TILE), self.y.next_multiple_of(TILE));
        let end = |end: usize, edge: usize| if end >= edge { edge } else { end - end % TILE };
        let (right, bottom) = (end(self.right(), picture.right()), end(self.bottom(), picture.bottom()));
        Area { x, y, width: right.saturating_sub(x), height: bottom.saturating_sub(y) }.and(picture)
    }

    /// Cuts it into pieces at most this wide and high.
    pub fn pieces(self, width: usize, height: usize) -> impl Iterator<Item = Area> {
        let (width, height) = (width.max(1), height.max(1));
        (self.y..self.bottom()).step_by(height).flat_map(move |y| {
            (self.x..self.right()).step_by(width).map(move |x| Area {
                x,
                y,
                width: width.min(self.right() - x),
                height: height.min(self.bottom() - y),
            })
        })
    }
}

/// The tiles of a picture, each marked or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tiles {
    width: usize,
    height: usize,
    /// Tiles in a row.
    columns: usize,
    marks: Vec<bool>,
}

impl Tiles {
    /// The tiles of a picture of this size, all of them marked or none.
    pub fn new(width: usize, height: usize, marked: bool) -> Tiles {
        let columns = width.div_ceil(TILE);
        Tiles { width, height, columns, marks: vec![marked; columns * height.div_ceil(TILE)] }
    }

    /// Marks the tile in this column and row of tiles.
    pub fn mark(&mut self, column: usize, row: usize) {
        if let Some(mark) = self.marks.get_mut(row * self.columns + column).filter(|_| column < self.columns)
        {
            *mark = true;
        }
    }

    /// Marks what is marked in the other one, of the same size.
    pub fn merge(&mut self, other: &Tiles) {
        for (mark, other) in self.marks.iter_mut().zip(&other.marks) {
            *mark |= other;
        }
    }

    /// Whether any tile is marked.
    pub fn any(&self) -> bool {
        self.marks.contains(&true)
    }

    /// Takes the marks from the tiles that `area` touches: the rectangles that they were, of whole tiles, from top to
    /// bottom. Neighbours are joined: to rows, and equal rows to blocks.
    pub fn take(&mut self, area: Area) -> Vec<Area> {
        let area = area.and(Area::whole(self.width, self.height));
        let mut done: Vec<Area> = Vec::new();
        if area.is_empty() {
            return done;
        }
        let columns = area.x / TILE..area.right().div_ceil(TILE);
        // Blocks that the next row may make higher.
        let mut open: Vec<Area> = Vec::new();
        for row in area.y / TILE..area.bottom().div_ceil(TILE) {
            let mut now = Vec::new();
            let mut begin = None;
            for column in columns.start..=columns.end {
                let mark = self.marks.get_mut(row * self.columns + column).filter(|_| column < columns.end);
                let marked = mark.is_some_and(std::mem::take);
                match (marked, begin) {
                    (true, None) => begin = Some(column),
                    (false, Some(first)) => {
                        now.push(self.area_of(first..column, row));
                        begin = None;
                    }
                    _ => {}
                }
            }
            for run in &mut now {
                if let Some(at) = open.iter().position(|block| (block.x, block.width) == (run.x, run.width)) {
                    let block = open.swap_remove(at);
                    *run = Area { y: block.y, height: block.height + run.height, ..*run };
                }
            }
            done.append(&mut open);
            open = now;
        }
        done.append(&mut open);
        done.sort_by_key(|block| (block.y, block.x));
        done
    }

    fn area_of(&self, columns: std::ops::Range<usize>, row: usize) -> Area {
        let (x, y) = (columns.start * TILE, row * TILE);
        Area {
            x,
            y,
            width: (columns.end * TILE).min(self.width).saturating_sub(x),
            height: TILE.min(self.height.saturating_sub(y)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(x: usize, y: usize, width: usize, height: usize) -> Area {
        Area { x, y, width, height }
    }

    #[test]
    fn areas_meet_and_join() {
        let a = area(10, 10, 20, 20);
        assert_eq!(a.and(area(0, 0, 15, 100)), area(10, 10, 5, 20));
        assert!(a.and(area(30, 10, 5, 5)).is_empty());
        assert_eq!(a.around(area(0, 25, 1, 50)), area(0, 10, 30, 65));
        assert_eq!(a.around(Area::default()), a);
        assert_eq!(a.and(area(usize::MAX, usize::MAX, usize::MAX, usize::MAX)), Area::default());
    }

    #[test]
    fn whole_tiles_of_an_area() {
        let picture = Area::whole(100, 50);
        assert_eq!(picture.whole_tiles(picture), picture);
        assert_eq!(area(1, 16, 50, 40).whole_tiles(picture), area(16, 16, 32, 34));
        assert_eq!(area(1, 1, 20, 20).whole_tiles(picture), Area::default());
        assert_eq!(Area::default().whole_tiles(picture), Area::default());
    }

    #[test]
    fn pieces_cover_an_area() {
        let pieces: Vec<_> = area(5, 7, 10, 3).pieces(4, 2).collect();
        let expected = [
            area(5, 7, 4, 2),
            area(9, 7, 4, 2),
            area(13, 7, 2, 2),
            area(5, 9, 4, 1),
            area(9, 9, 4, 1),
            area(13, 9, 2, 1),
        ];
        assert_eq!(pieces, expected);
        assert_eq!(area(0, 0, 0, 5).pieces(1, 1).count(), 0);
    }

    #[test]
    fn marked_tiles_become_joined_rectangles() {
        let mut tiles = Tiles::new(100, 50, false);
        assert_eq!(tiles.take(Area::whole(100, 50)), []);
        for (column, row) in [(1, 0), (2, 0), (1, 1), (2, 1), (6, 3), (6, 2), (0, 2), (7, 0), (0, 4)] {
            tiles.mark(column, row);
        }
        // The tiles (7, 0) and (0, 4) are outside of the picture, the last column is 4 pixels wide, the last row 2 high.
        let expected = [area(16, 0, 32, 32), area(0, 32, 16, 16), area(96, 32, 4, 18)];
        assert_eq!(tiles.take(Area::whole(100, 50)), expected);
        assert!(!tiles.any());
    }

    #[test]
    fn what_was_not_asked_for_stays_marked() {
        let mut tiles = Tiles::new(64, 64, true);
        assert_eq!(tiles.take(area(17, 1, 1, 1)), [area(16, 0, 16, 16)]);
        assert_eq!(tiles.take(area(0, 0, 64, 16)), [area(0, 0, 16, 16), area(32, 0, 32, 16)]);
        assert_eq!(tiles.take(Area::whole(1000, 1000)), [area(0, 16, 64, 48)]);
    }

    #[test]
    fn marks_are_merged() {
        let mut tiles = Tiles::new(32, 16, false);
        let mut other = tiles.clone();
        tiles.mark(0, 0);
        other.mark(1, 0);
        tiles.merge(&other);
        assert_eq!(tiles.take(Area::whole(32, 16)), [area(0, 0, 32, 16)]);
    }
}
