//! Filters and the database.
//!
//! In: a filter. Out: the condition of a query. Never here: running it, and what only memory knows.
//!
//! Not all that a filter can ask for is in the database: whether a device is online and when it was heard stands in memory,
//! whether it is on target and why not is decided from several rows (`standing`), and versions are ordered as no database
//! orders text. **The condition lets through every device that the filter means, and exactly those where the filter asks only
//! for what is stored** ([`exact`]). Else whoever runs the query judges what it lets through by [`Filter::matches`].
//!
//! [`exact`]: is_exact

#[cfg(test)]
mod tests;

use copal_filter::{Check, Expr, Field, Filter, Pattern, Test};
use sqlx::{QueryBuilder, Sqlite};

/// Whether the database alone can tell which devices the filter means.
pub(crate) fn is_exact(filter: &Filter) -> bool {
    fn exact(expr: &Expr) -> bool {
        match expr {
            Expr::And(parts) | Expr::Or(parts) => parts.iter().all(exact),
            Expr::Not(inner) => exact(inner),
            Expr::Test(test) => stored(test),
        }
    }
    exact(filter.expr())
}

/// Whether this comparison can be made by the database.
fn stored(test: &Test) -> bool {
    let known =
        !matches!(test.field, Field::Online | Field::OnTarget | Field::LastSeen | Field::Reason | Field::Os);
    known && !matches!(test.check, Check::Version(..))
}

/// Writes the condition. The query names its devices `d`; `fleet_id` is the fleet they are of.
pub(crate) fn condition(query: &mut QueryBuilder<Sqlite>, filter: &Filter, fleet_id: &str) {
    write(query, filter.expr(), fleet_id, true);
}

/// Writes what holds where the expression is so (`yes`), or is not so. A `not` is carried down to the comparisons, so that a
/// comparison the database cannot make lets everything through on whichever side of a `not` it stands; and so that no NULL
/// is ever turned around.
fn write(query: &mut QueryBuilder<Sqlite>, expr: &Expr, fleet_id: &str, yes: bool) {
    let (parts, all) = match expr {
        Expr::And(parts) => (parts, yes),
        Expr::Or(parts) => (parts, !yes),
        Expr::Not(inner) => return write(query, inner, fleet_id, !yes),
        Expr::Test(test) => return compare(query, test, fleet_id, yes),
    };
    query.push("(");
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            query.push(if all { " AND " } else { " OR " });
        }
        write(query, part, fleet_id, yes);
    }
    query.push(")");
}

fn compare(query: &mut QueryBuilder<Sqlite>, test: &Test, fleet_id: &str, yes: bool) {
    if !stored(test) {
        query.push("TRUE");
        return;
    }
    // What holds of nothing that is not there; `!=` is the opposite of `=`.
    let (check, yes) = match &test.check {
        Check::Differs(text) => (&Check::Equals(text.clone()), !yes),
        Check::Is(flag) => (&Check::There, *flag == yes),
        other => (other, yes),
    };
    let not = if yes { "" } else { "NOT " };
    match &test.field {
        Field::Tag(key) => {
            query.push(format_args!(
                "d.device_id {not}IN (SELECT t.device_id FROM device_tags t WHERE t.key = "
            ));
            query.push_bind(key.clone());
            if !matches!(check, Check::There) {
                query.push(" AND ");
                value(query, "t.value", check);
            }
            query.push(")");
        }
        Field::Check(name) => {
            query.push(format_args!(
                "d.device_id {not}IN (SELECT c.device_id FROM device_checks c WHERE c.name = "
            ));
            query.push_bind(name.clone());
            if !matches!(check, Check::There) {
                query.push(" AND ");
                value(query, "c.verdict", check);
            }
            query.push(")");
        }
        Field::Release => {
            query.push(if yes { "(" } else { "(d.committed_release IS NULL OR " });
            query.push(format_args!(
                "d.committed_release {not}IN (SELECT r.id FROM releases r WHERE r.fleet_id = "
            ));
            query.push_bind(fleet_id.to_owned()).push(" AND r.line = 'app'");
            if !matches!(check, Check::There) {
                query.push(" AND ");
                value(query, "r.version", check);
            }
            query.push("))");
        }
        field => {
            let column = column(field);
            if yes {
                value(query, column, check);
            } else {
                query.push(format_args!("({column} IS NULL OR NOT "));
                value(query, column, check);
                query.push(")");
            }
        }
    }
}

/// The column of a field that has one.
const fn column(field: &Field) -> &'static str {
    match field {
        Field::Name => "d.name",
        Field::State => "d.state",
        Field::Agent => "d.agent_version",
        Field::Arch => "d.arch",
        Field::DeviceType => "d.device_type",
        Field::Pinned => "d.pinned_release",
        Field::Health => "d.health",
        // The rest does not come here: see `stored` and `compare`.
        _ => "d.device_id",
    }
}

/// Writes one comparison of a column, in parentheses.
fn value(query: &mut QueryBuilder<Sqlite>, column: &str, check: &Check) {
    query.push(format_args!("({column} "));
    match check {
        Check::Equals(text) | Check::Differs(text) => query.push("= ").push_bind(text.clone()),
        Check::Like(pattern) => query.push("GLOB ").push_bind(glob(pattern)),
        Check::In(values) => {
            query.push("IN (");
            let mut list = query.separated(", ");
            for value in values {
                list.push_bind(value.clone());
            }
            query.push(")")
        }
        Check::There | Check::Is(_) | Check::Version(..) | Check::Ago(..) => query.push("IS NOT NULL"),
    };
    query.push(")");
}

/// The pattern as SQLite's GLOB reads it, which knows sets in brackets, too. (PostgreSQL's counterpart is LIKE.)
fn glob(pattern: &Pattern) -> String {
    pattern.as_str().replace('[', "[[]")
}
