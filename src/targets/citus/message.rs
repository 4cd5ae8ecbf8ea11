//! Formats why a layout misses its limit of imbalance. Pure.

use super::planner::layout::Short;
use crate::domain::message::layout::percent;

/// Returns the reason in a sentence; `name` returns the name of a placement.
pub fn why(short: &Short, nodes: usize, limit: f64, name: impl Fn(usize) -> String) -> String {
    match short {
        Short::TooLarge { placement, above } => format!(
            "`{}` alone is {} above what a node carries in the mean: give its largest tenant a shard of its own",
            name(*placement),
            percent(*above)
        ),
        Short::TooFew { groups, best: (above, below), enough } => format!(
            "the best with {groups} groups on {nodes} nodes is {} and {}; about {enough} groups reach {:.0} %",
            percent(*above),
            percent(-below),
            limit * 100.0
        ),
        Short::Bound { best } => format!(
            "no layout within {:.0} % was found; the best is {:.0} %, with what is pinned and the room that there is",
            limit * 100.0,
            best * 100.0
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_why_a_limit_is_out_of_reach() {
        let few = Short::TooFew { groups: 32, best: (0.25, 0.375), enough: 200 };
        assert_eq!(
            why(&few, 20, 0.1, |_| String::new()),
            "the best with 32 groups on 20 nodes is +25 % and -38 %; about 200 groups reach 10 %"
        );
    }
}
