//! Properties of the language, and the guide's examples.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

use copal_filter::{Check, Expr, Field, Filter, Kind, Order, Pattern, STATES, Test, VERDICTS};
use proptest::prelude::*;

fn field() -> impl Strategy<Value = Field> {
    prop_oneof![
        Just(Field::Name),
        Just(Field::Id),
        Just(Field::State),
        Just(Field::Online),
        Just(Field::LastSeen),
        Just(Field::Agent),
        Just(Field::Os),
        Just(Field::Release),
        Just(Field::Reason),
        Just(Field::Arch),
        Just(Field::DeviceType),
        Just(Field::OnTarget),
        Just(Field::Pinned),
        Just(Field::Health),
        "[a-z0-9_]{1,6}".prop_map(Field::Check),
        "[A-Za-z0-9_./-]{1,6}".prop_map(Field::Tag),
    ]
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![Just(Order::Below), Just(Order::AtMost), Just(Order::Above), Just(Order::AtLeast)]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[ -~]{0,8}", "\\PC{0,4}"].prop_map(|t| t.chars().filter(|c| !c.is_control()).collect())
}

fn check(field: &Field) -> BoxedStrategy<Check> {
    let value = match field {
        Field::State => proptest::sample::select(STATES).prop_map(str::to_owned).boxed(),
        Field::Health | Field::Check(_) => proptest::sample::select(VERDICTS).prop_map(str::to_owned).boxed(),
        _ => text().boxed(),
    };
    let version = (0..20_u64, 0..20_u64, 0..20_u64).prop_map(|(a, b, c)| semver::Version::new(a, b, c));
    let textual = prop_oneof![
        value.clone().prop_map(Check::Equals),
        value.clone().prop_map(Check::Differs),
        text().prop_filter_map("few stars", |t| Pattern::new(&t)).prop_map(Check::Like),
        proptest::collection::vec(value, 1..4).prop_map(Check::In),
    ];
    let there = if field.may_be_absent() { 1 } else { 0 };
    match field.kind() {
        Kind::Text if there == 1 => prop_oneof![4 => textual, 1 => Just(Check::There)].boxed(),
        Kind::Text => textual.boxed(),
        Kind::Version => prop_oneof![
            3 => textual,
            1 => Just(Check::There),
            2 => (order(), version).prop_map(|(o, v)| Check::Version(o, v)),
        ]
        .boxed(),
        Kind::Flag => any::<bool>().prop_map(Check::Is).boxed(),
        Kind::Ago => {
            prop_oneof![Just(Check::There), (order(), 0..10_000_000_u64).prop_map(|(o, s)| Check::Ago(o, s)),]
                .boxed()
        }
    }
}

fn expr() -> impl Strategy<Value = Expr> {
    let test = field()
        .prop_flat_map(|f| check(&f).prop_map(move |check| Expr::Test(Test { field: f.clone(), check })));
    test.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 2..4).prop_map(Expr::all),
            proptest::collection::vec(inner.clone(), 2..4).prop_map(Expr::any_of),
            inner.prop_map(|e| Expr::Not(Box::new(e))),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_printed_reads_back_as_the_same_tree(expr in expr()) {
        let text = expr.to_string();
        prop_assume!(text.chars().count() <= copal_filter::MAX_CHARS);
        let read: Filter = text.parse().map_err(|e: copal_filter::Error| TestCaseError::fail(e.pointed(&text)))?;
        prop_assert_eq!(read.expr(), &expr, "{}", text);
    }

    #[test]
    fn no_text_makes_the_parser_panic_and_every_error_points_into_it(text in "\\PC{0,60}|[ ()a-z_.<>=!~\"',0-9\\\\]{0,60}") {
        if let Err(error) = text.parse::<Filter>() {
            prop_assert!(error.column >= 1 && error.column <= text.chars().count() + 1);
            prop_assert!(!error.message.is_empty());
            let _ = error.pointed(&text);
        }
    }

    #[test]
    fn words_of_the_grammar_in_any_order_are_read_or_refused(words in proptest::collection::vec(
        proptest::sample::select(vec!["(", ")", "and", "or", "not", "has", "in", "online", "name", "tag.a", "last_seen",
            "release", "=", "!=", "<", ">=", "~", ",", "2h", "1.2.0", "true", "\"x\"", "state", "accepted"]), 0..24)) {
        let text = words.join(" ");
        if let Ok(filter) = text.parse::<Filter>() {
            let shown = filter.to_string();
            prop_assert_eq!(shown.parse::<Filter>().map(|f| f.to_string()), Ok(shown));
        }
    }
}

#[test]
fn every_example_of_the_guide_is_a_filter() {
    let guide = include_str!("../../../docs/filter.md");
    let mut inside = false;
    let mut count = 0;
    for line in guide.lines() {
        if line.starts_with("```") {
            inside = line == "```filter";
        } else if inside {
            line.parse::<Filter>().unwrap_or_else(|e| panic!("docs/filter.md: {}", e.pointed(line)));
            count += 1;
        }
    }
    assert!(count >= 12, "{count} examples were found");
}

#[test]
fn the_guide_names_every_field() {
    let guide = include_str!("../../../docs/filter.md");
    for field in ["name", "id", "state", "online", "last_seen", "agent", "os", "release", "reason", "arch"] {
        assert!(guide.contains(&format!("| `{field}` |")), "{field}");
    }
    for field in ["device_type", "on_target", "pinned"] {
        assert!(guide.contains(&format!("| `{field}` |")), "{field}");
    }
}
