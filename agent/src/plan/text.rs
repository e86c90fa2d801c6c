//! Plans as text for people.

use std::fmt;

use super::{Action, Lane, Need, Plan, Step, Which, labels};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.apps.is_empty() {
            return writeln!(f, "nothing to do");
        }
        for (id, app) in &self.apps {
            match app.release {
                Some(release) => {
                    writeln!(f, "app {}: to release {:.12}", labels::short(*id), release.to_string())?;
                }
                None => writeln!(f, "app {}: goes; its volumes stay", labels::short(*id))?,
            }
            if app.lanes.is_empty() {
                writeln!(f, "  nothing to do")?;
            }
            for (lane, plan) in &app.lanes {
                writeln!(f, "  {lane}")?;
                if let Some(why) = &plan.blocked {
                    writeln!(f, "    blocked ({}): {}", why.code, why.message)?;
                }
                for step in &plan.steps {
                    writeln!(f, "    {step}")?;
                }
            }
            for note in &app.notes {
                writeln!(f, "  note: {note}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(name) => write!(f, "network {name}"),
            Self::Volume(name) => write!(f, "volume {name}"),
            Self::Service(name) => write!(f, "service {name}"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.action)?;
        for (i, need) in self.after.iter().enumerate() {
            write!(f, "{}{need}", if i == 0 { "   ← after " } else { ", " })?;
        }
        Ok(())
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lane(lane) => write!(f, "{lane}"),
            Self::Images => write!(f, "all images are here"),
            Self::Started(name) => write!(f, "{name} runs"),
            Self::Healthy(name) => write!(f, "{name} is healthy"),
            Self::Completed(name) => write!(f, "{name} has ended well"),
        }
    }
}

fn cut(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => f.write_str(cut(id)),
            Self::New => f.write_str("the new one"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Download => write!(f, "download its image"),
            Self::ForgetImage(id) => write!(f, "let go of image {id}"),
            Self::Create { name, peers } => {
                write!(f, "create {name}")?;
                peers.iter().try_for_each(|(peer, id)| write!(f, ", beside {peer} ({})", cut(id)))
            }
            Self::Join(which, network) => write!(f, "join {which} to network {network}"),
            Self::Start(which) => write!(f, "start {which}"),
            Self::HandOver(which) => write!(f, "wait until {which} has taken over"),
            Self::Lock => write!(f, "take the update lock"),
            Self::Stop { id, grace_s } => write!(f, "stop {} (within {grace_s} s)", cut(id)),
            Self::Remove(id) => write!(f, "remove {}", cut(id)),
            Self::Rename(which, name) => write!(f, "rename {which} to {name}"),
            Self::CreateNetwork(name) => write!(f, "create {name}"),
            Self::Leave { container, network } => write!(f, "take {} out of {network}", cut(container)),
            Self::RemoveNetwork { name, id } => write!(f, "remove {name} ({})", cut(id)),
            Self::CreateVolume(name) => write!(f, "create {name}"),
        }
    }
}
