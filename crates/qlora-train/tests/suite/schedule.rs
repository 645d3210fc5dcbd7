//! Learning rates against transformers' schedulers.

use qlora_train::schedule::{Schedule, ScheduleKind};
use serde_json::Value;

const PEAK: f64 = 2e-4;
const STEPS: u64 = 20;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/lr_schedules.json")).unwrap()
}

fn kind(case: &Value) -> Option<ScheduleKind> {
    let options = case["kwargs"].as_object().unwrap();
    let option = |name: &str| options.get(name).and_then(Value::as_f64);
    let only = |known: &[&str]| options.keys().all(|key| known.contains(&key.as_str()));
    match case["scheduler"].as_str().unwrap() {
        "linear" => Some(ScheduleKind::Linear),
        "constant_with_warmup" => Some(ScheduleKind::Constant),
        "cosine" => only(&[]).then_some(ScheduleKind::Cosine),
        "cosine_with_restarts" => {
            Some(ScheduleKind::CosineWithRestarts { cycles: option("num_cycles").unwrap_or(1.0) })
        }
        "cosine_with_min_lr" => {
            let minimum = option("min_lr_rate").or(option("min_lr").map(|rate| rate / PEAK)).unwrap();
            Some(ScheduleKind::CosineWithMinimum { minimum })
        }
        "polynomial" => Some(ScheduleKind::Polynomial {
            power: option("power").unwrap_or(1.0),
            end: option("lr_end").unwrap_or(1e-7) / PEAK,
        }),
        "inverse_sqrt" => only(&[]).then_some(ScheduleKind::InverseSqrt),
        "warmup_stable_decay" => only(&["num_decay_steps"])
            .then(|| ScheduleKind::Wsd { decay: option("num_decay_steps").unwrap() / STEPS as f64 }),
        _ => None,
    }
}

#[test]
fn rates_equal_those_of_transformers() {
    let golden = golden();
    let mut compared = 0;
    for case in golden["cases"].as_array().unwrap() {
        let Some(kind) = kind(case) else { continue };
        let warmup = case["num_warmup_steps"].as_f64().unwrap();
        let schedule = Schedule::new(kind, PEAK, warmup, STEPS);
        // Entries past the end belong to no training step.
        for (step, rate) in case["lrs"].as_array().unwrap().iter().take(STEPS as usize).enumerate() {
            let (rate, found) = (rate.as_f64().unwrap(), schedule.rate(step as u64));
            assert!(
                (found - rate).abs() <= 1e-12 * PEAK,
                "{} at step {step}: {found} is not {rate}",
                case["name"]
            );
        }
        compared += 1;
    }
    assert_eq!(compared, 17);
}

#[test]
fn warmup_is_steps_or_a_share() {
    for case in golden()["warmup_steps"].as_array().unwrap() {
        let total = case["total_steps"].as_u64().unwrap();
        let option = case["warmup_steps_option"].as_f64().unwrap();
        let schedule = Schedule::new(ScheduleKind::Linear, PEAK, option, total);
        assert_eq!(schedule.warmup_steps(), case["warmup_steps"].as_u64().unwrap(), "{case}");
    }
}

#[test]
fn no_schedule_leaves_its_range() {
    for kind in ScheduleKind::ALL {
        for (warmup, steps) in [(0.0, 1), (1.0, 1), (30.0, 20), (0.5, 7), (0.0, 0)] {
            let schedule = Schedule::new(kind, 1.0, warmup, steps);
            for step in 0..40 {
                let rate = schedule.rate(step);
                assert!((0.0..=1.0).contains(&rate), "{kind:?} {warmup} {steps} {step}: {rate}");
            }
        }
    }
}
